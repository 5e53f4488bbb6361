// Compiles src/ with npm's solc and writes artifacts/NAME.json (ABI and the code that deploys it) for each contract
// that is deployed. `--check` compares with what is there instead, and fails when a byte differs. Names build only those.
import { mkdirSync, readFileSync, readdirSync, writeFileSync, existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const solc = require("solc");
const root = join(dirname(fileURLToPath(import.meta.url)), "..");

// EIP-170: a chain refuses longer code.
const LONGEST = 24_576;
const OURS = readdirSync(join(root, "src")).filter((name) => name.endsWith(".sol"));
const THEIRS = {
  ERC1967Proxy: "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol",
  TimelockController: "@openzeppelin/contracts/governance/TimelockController.sol",
};

const sources = {};
for (const name of OURS) sources[`src/${name}`] = { content: readFileSync(join(root, "src", name), "utf8") };
for (const path of Object.values(THEIRS)) sources[path] = { content: readFileSync(join(root, "node_modules", path), "utf8") };

const only = process.argv.slice(2).filter((word) => !word.startsWith("--"));
const wanted = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"];

const input = {
  language: "Solidity",
  sources,
  settings: {
    optimizer: { enabled: true, runs: 1 },
    evmVersion: "cancun",
    // No hash of the sources in the code, so a comment changes no byte of it.
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: only.length === 0 ? { "*": { "*": wanted } } : { "*": Object.fromEntries(only.map((name) => [name, wanted])) },
  },
};
const output = JSON.parse(
  solc.compile(JSON.stringify(input), {
    import: (path) => {
      const file = join(root, path.startsWith("src/") ? path : `node_modules/${path}`);
      return existsSync(file) ? { contents: readFileSync(file, "utf8") } : { error: `${path} is not there` };
    },
  }),
);
const errors = (output.errors ?? []).filter((e) => e.severity === "error" || e.sourceLocation?.file.startsWith("src/"));
if (errors.length > 0) {
  console.error(errors.map((e) => e.formattedMessage).join("\n"));
  process.exit(1);
}

const check = process.argv.includes("--check");
mkdirSync(join(root, "artifacts"), { recursive: true });
let differs = 0;
const made = new Set();
const emit = (name, contract) => {
  const code = contract.evm.bytecode.object;
  // Abstract, or a library that is part of the code of others: nothing to deploy.
  if (code === "" || contract.abi.every((entry) => entry.type === "error")) return;
  const deployed = contract.evm.deployedBytecode.object;
  if (deployed.length / 2 > LONGEST) {
    console.error(`${name} has ${deployed.length / 2} bytes of code, more than ${LONGEST}`);
    differs++;
  }
  const abi = contract.abi.map((entry) => JSON.stringify(entry)).join(",\n");
  const text = `{"name":"${name}","solc":"${solc.version()}","abi":[\n${abi}\n],"bytecode":"0x${code}"}\n`;
  const file = join(root, "artifacts", `${name}.json`);
  made.add(`${name}.json`);
  if (check) {
    if (!existsSync(file) || readFileSync(file, "utf8") !== text) {
      console.error(`artifacts/${name}.json is not what src/ compiles to: run npm run build`);
      differs++;
    }
  } else {
    writeFileSync(file, text);
    console.log(`${name.padEnd(20)} ${String(deployed.length / 2).padStart(6)} bytes`);
  }
};
for (const [path, contracts] of Object.entries(output.contracts)) {
  for (const [name, contract] of Object.entries(contracts)) {
    if (path.startsWith("src/") || THEIRS[name] === path) emit(name, contract);
  }
}
for (const name of readdirSync(join(root, "artifacts"))) {
  if (only.length === 0 && !made.has(name)) {
    console.error(`artifacts/${name} belongs to no contract`);
    differs++;
  }
}
process.exit(differs > 0 ? 1 : 0);
