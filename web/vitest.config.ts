import { defineConfig } from "vitest/config";

// Real signatures are slow on a busy machine, and a test that waits for the clock would be another one.
export default defineConfig({ test: { include: ["tests/unit/**/*.test.ts"], testTimeout: 60_000 } });
