import { defineConfig } from "vite";

// Fixed names and nothing inlined: the same sources give the same files, byte for byte, and the page runs under
// `default-src 'self'`.
export default defineConfig({
  base: "/",
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  build: {
    target: "es2023",
    outDir: "dist",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    cssCodeSplit: false,
    sourcemap: false,
    reportCompressedSize: false,
    rollupOptions: {
      output: {
        entryFileNames: "assets/assay.js",
        chunkFileNames: "assets/[name].js",
        assetFileNames: (asset) => (asset.names.some((name) => name.endsWith(".css")) ? "assets/assay.css" : "assets/[name][extname]"),
      },
    },
  },
  server: { proxy: { "/v1": gateway(), "/assay": gateway() } },
});

function gateway(): string {
  return process.env.ASSAY_URL ?? "http://127.0.0.1:8600";
}
