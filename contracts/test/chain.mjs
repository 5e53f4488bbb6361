// An anvil of its own for each test file, with the whole deployment on it.
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { createServer } from "node:net";
import { Contract, HDNodeWallet, JsonRpcProvider, Mnemonic, NonceManager } from "ethers";
import { artifact, plan, send } from "../scripts/genesis.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const freePort = () =>
  new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });

/** Starts anvil and deploys genesis.example.json. Call `stop` at the end. */
export async function chain() {
  const port = await freePort();
  const binary = join(here, "..", "node_modules", ".bin", "anvil");
  const anvil = spawn(binary, ["--port", String(port), "--silent", "--gas-limit", "60000000"], { stdio: "ignore" });
  const url = `http://127.0.0.1:${port}`;
  const body = JSON.stringify({ jsonrpc: "2.0", id: 1, method: "eth_chainId", params: [] });
  for (let i = 0; ; i++) {
    try {
      await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body });
      break;
    } catch (error) {
      if (i > 600) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  const provider = new JsonRpcProvider(url, undefined, { polling: true, pollingInterval: 10, cacheTimeout: -1 });
  // Votes are checkpointed by time: what an estimate writes over in this second is a new entry, and dearer, in the next.
  const estimate = provider.estimateGas.bind(provider);
  provider.estimateGas = async (transaction) => ((await estimate(transaction)) * 5n) / 4n;
  const mnemonic = Mnemonic.fromPhrase("test test test test test test test test test test test junk");
  const wallet = (i) => HDNodeWallet.fromMnemonic(mnemonic, `m/44'/60'/0'/0/${i}`).connect(provider);
  const wallets = Array.from({ length: 10 }, (_, i) => wallet(i));
  const genesis = JSON.parse(readFileSync(join(here, "..", "genesis.example.json"), "utf8"));
  const made = plan(genesis, wallets[0].address, 0);
  const { gas } = await send(new NonceManager(wallets[0]), made);
  const at = (name, field, signer = wallets[0]) => new Contract(made.addresses[field], artifact(name).abi, signer);
  /** Sends a transaction and returns its receipt. */
  const tx = async (promise) => (await promise).wait();
  /** The name of the custom error that a call reverts with, or `null`. */
  const failure = async (contract, method, ...args) => {
    try {
      await contract[method].staticCall(...args);
      return null;
    } catch (error) {
      const data = error.data ?? error.info?.error?.data;
      return error.revert?.name ?? (data && contract.interface.parseError(data)?.name) ?? error.shortMessage ?? error.message;
    }
  };
  const pass = async (seconds) => {
    await provider.send("evm_increaseTime", [seconds]);
    await provider.send("evm_mine", []);
  };
  const stop = () => {
    provider.destroy();
    anvil.kill();
  };
  return { provider, wallets, genesis, made, gas, at, tx, failure, pass, stop };
}
