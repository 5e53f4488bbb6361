import { defineConfig } from "vite";

// The same sources give the same files, byte for byte. What lies under assets/ has the hash of its content in its name,
// so that the gateway can let browsers keep it; nothing is inlined, so that the page runs under `default-src 'self'`.
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
      input: ["index.html", "models.html"],
      output: {
        entryFileNames: "assets/assay-[hash].js",
        chunkFileNames: "assets/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
  server: { proxy: { "/v1": gateway(), "/v2": gateway(), "/assay": gateway() } },
});

// The gateway refuses pages of other origins, which the page of this development server is.
function gateway(): { target: string; changeOrigin: boolean; headers: { origin: string } } {
  const target = process.env.ASSAY_URL ?? "http://127.0.0.1:8600";
  return { target, changeOrigin: true, headers: { origin: target } };
}
