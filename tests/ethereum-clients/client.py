"""web3.py against a validator: sends, deploys, reads logs. Called by run.mjs with the URL."""

import json
import pathlib
import sys

from web3 import Account, Web3

root = pathlib.Path(__file__).resolve().parents[2]
artifact = json.loads((root / "contracts/artifacts/Opg.json").read_text())
w3 = Web3(Web3.HTTPProvider(sys.argv[1]))
assert w3.is_connected() and w3.eth.chain_id == 31415
Account.enable_unaudited_hdwallet_features()
phrase = "test test test test test test test test test test test junk"
me = Account.from_mnemonic(phrase, account_path="m/44'/60'/0'/0/7")
other = Account.from_mnemonic(phrase, account_path="m/44'/60'/0'/0/8")


def send(transaction):
    transaction |= {"nonce": w3.eth.get_transaction_count(me.address, "pending"), "chainId": 31415}
    signed = me.sign_transaction(transaction)
    receipt = w3.eth.wait_for_transaction_receipt(w3.eth.send_raw_transaction(signed.raw_transaction), poll_latency=0.05)
    assert receipt.status == 1, receipt
    return receipt


send({"to": other.address, "value": 3, "gas": 21000, "maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**9})
factory = w3.eth.contract(abi=artifact["abi"], bytecode=artifact["bytecode"])
made = send(factory.constructor([("all", me.address, 10**27)]).build_transaction({"from": me.address}))
token = w3.eth.contract(made.contractAddress, abi=artifact["abi"])
receipt = send(token.functions.transfer(other.address, 11).build_transaction({"from": me.address}))
assert token.functions.balanceOf(other.address).call() == 11
logs = token.events.Transfer.get_logs(from_block=0)
assert [log.args.value for log in logs] == [10**27, 11], logs
assert token.events.Transfer().process_receipt(receipt)[0].args.to == other.address
block = w3.eth.get_block("latest", full_transactions=True)
assert block.number >= receipt.blockNumber
assert w3.eth.fee_history(4, "latest", [50]).oldestBlock >= 0
