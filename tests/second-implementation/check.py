#!/usr/bin/env python3
"""Checks docs/vectors/receipt.json with eth-account, an implementation of EIP-712 that shares no code with Assay.

Every digest, struct hash, commitment, chain link and signer is computed again from the typed data. Run it with
`pip install -r requirements.txt`; it prints what it checked and exits with 1 at the first difference.
"""

import json
import pathlib
import re
import sys

from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils import keccak

ROOT = pathlib.Path(__file__).resolve().parents[2]
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ENUMS = {
    "level": ["signed", "attested", "replayed", "proved"],
    "verdict": ["agrees", "differs", "unable"],
    "code": [
        "busy", "draining", "unknown_model", "bad_request", "context_exceeded", "cap_exceeded", "cancelled",
        "upstream", "internal", "duplicate_nonce", "resume_mismatch",
    ],
}  # fmt: skip
checked = 0


def unhex(text):
    return bytes.fromhex(text.removeprefix("0x"))


def same(what, found, expected):
    global checked
    checked += 1
    if found != expected:
        show = [value.hex() if isinstance(value, bytes) else value for value in (found, expected)]
        sys.exit(f"{what}: computed {show[0]}, the vector says {show[1]}")


def signable(typed_data):
    return encode_typed_data(full_message=typed_data)


def digest(message):
    return keccak(b"\x19\x01" + message.header + message.body)


def check_signature(what, vector, typed_data, signer, private_key):
    message = signable(typed_data)
    same(f"{what}: digest", digest(message), unhex(vector["digest"]))
    signature = unhex(vector["signature"])
    same(f"{what}: length of the signature", len(signature), 65)
    same(f"{what}: v", signature[64] in (27, 28), True)
    same(f"{what}: low s", int.from_bytes(signature[32:64]) <= ORDER // 2, True)
    same(f"{what}: signer", Account.recover_message(message, signature=signature).lower(), signer)
    # Both sides choose k as RFC 6979 says, so the signatures are the same bytes.
    same(f"{what}: signature", bytes(Account.sign_message(message, private_key).signature), signature)


def camel(name):
    return re.sub("_([a-z0-9])", lambda match: match[1].upper(), name)


def as_message(name, value):
    """A flat statement of the wire's JSON in the form of the typed data."""
    return ENUMS[name].index(value) if name in ENUMS else value


def text_of(value):
    return str(value)


vectors = json.loads((ROOT / "docs/vectors/receipt.json").read_text())
domain = vectors["domain"]
any_data = vectors["statements"][0]["typed_data"]
same("domain separator", bytes(signable(any_data).header), unhex(vectors["domain_separator"]))

for vector in vectors["statements"]:
    name, data = vector["name"], vector["typed_data"]
    same(f"{name}: chain", data["domain"]["chainId"], domain["chain_id"])
    same(f"{name}: contract", data["domain"]["verifyingContract"], domain["contract"])
    check_signature(name, vector, data, vector["signer"], vector["private_key"])
    same(f"{name}: address of the key", Account.from_key(vector["private_key"]).address.lower(), vector["signer"])
    if name != "members":  # the only nested one
        wire = {camel(key): text_of(as_message(key, value)) for key, value in vector["json"]["statement"].items()}
        same(f"{name}: JSON", wire, {key: text_of(value) for key, value in data["message"].items()})

for number, vector in enumerate(vectors["commitments"]):
    what = f"commitment {number} ({vector['kind']})"
    struct_hash = bytes(signable(vector["typed_data"]).body)
    same(f"{what}: struct hash", struct_hash, unhex(vector["struct_hash"]))
    mask = keccak(b"assay/" + vector["kind"].encode() + unhex(vector["salt"]))
    same(what, keccak(mask + struct_hash), unhex(vector["commitment"]))

chain = vectors["chain"]
link = keccak(b"assay/chain" + unhex(chain["request"]) + unhex(chain["nonce"]))
same("start of the chain", link, unhex(chain["start"]))
for number, vector in enumerate(chain["links"]):
    what = f"link {number}"
    struct_hash = bytes(signable(vector["typed_data"]).body)
    same(f"{what}: struct hash", struct_hash, unhex(vector["struct_hash"]))
    link = keccak(link + struct_hash)
    same(what, link, unhex(vector["link"]))
    message = vector["signed_typed_data"]["message"]
    same(f"{what}: signed link", unhex(message["link"]), link)
    same(f"{what}: signed nonce", message["nonce"], chain["nonce"])
    same(f"{what}: signed index", int(message["index"]), number)
    check_signature(what, vector, vector["signed_typed_data"], chain["signer"], chain["private_key"])

receipt = vectors["bundle"]["receipt"]["statement"]
same("receipt: request", receipt["request"], vectors["commitments"][0]["commitment"])
same("receipt: output", receipt["output"], vectors["commitments"][4]["commitment"])
same("receipt: chain", unhex(receipt["chain"]), link)
same("receipt: chunks", receipt["chunks"], len(chain["links"]))
same("audit: receipt", vectors["statements"][2]["json"]["statement"]["receipt"], vectors["statements"][0]["digest"])

print(f"eth-account agrees with docs/vectors/receipt.json: {checked} values checked")
