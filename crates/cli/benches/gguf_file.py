"""Reads the tensors of a GGUF file as float32, and writes a copy of a file with other encodings.

Only what the benchmarks need: little-endian files of version 2 or 3 with F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K and Q6_K
tensors.
"""

import struct

import numpy as np

F32, F16, Q4_0, Q4_1, Q5_0, Q8_0, Q4_K, Q6_K = 0, 1, 2, 3, 6, 8, 12, 14
# Encoding: elements and bytes of a block.
BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q8_0: (32, 34)}
BLOCKS |= {Q5_0: (32, 22), Q4_K: (256, 144), Q6_K: (256, 210)}
SCALAR = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


class Reader:
    """A cursor over the header."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self):
        length = self.take("Q")
        self.at += length
        return bytes(self.data[self.at - length : self.at]).decode("utf-8", "replace")

    def value(self, kind):
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.take("I"), self.take("Q")
            return [self.value(inner) for _ in range(count)]
        return self.take(SCALAR[kind])


class File:
    """A file: `fields` by name, and for each tensor its shape (outermost first), encoding and bytes."""

    def __init__(self, path):
        data = np.memmap(path, dtype=np.uint8, mode="r")
        reader = Reader(data)
        if reader.take("I") != 0x46554747:
            raise SystemExit(f"{path} is not a GGUF file")
        reader.take("I")
        tensors, fields = reader.take("Q"), reader.take("Q")
        start = reader.at
        self.fields = {}
        for _ in range(fields):
            name = reader.string()
            self.fields[name] = reader.value(reader.take("I"))
        self.field_count, self.field_bytes = fields, bytes(data[start : reader.at])
        found = []
        for _ in range(tensors):
            name = reader.string()
            shape = [reader.take("Q") for _ in range(reader.take("I"))][::-1]
            found.append((name, shape, reader.take("I"), reader.take("Q")))
        self.alignment = self.fields.get("general.alignment", 32)
        base = -(-reader.at // self.alignment) * self.alignment
        self.tensors = {}
        for name, shape, encoding, offset in found:
            if encoding not in BLOCKS:
                raise SystemExit(f"the encoding {encoding} of {name} is not one that this benchmark reads")
            elements, size = BLOCKS[encoding]
            size = int(np.prod(shape)) // elements * size
            self.tensors[name] = (shape, encoding, data[base + offset : base + offset + size])

    def floats(self, name):
        """A tensor as float32."""
        shape, encoding, data = self.tensors[name]
        return decode(data, encoding).reshape(shape)


def decode(data, encoding):
    """Bytes of an encoding as float32."""
    if encoding == F32:
        return data.view(np.float32)
    if encoding == F16:
        return data.view(np.float16).astype(np.float32)
    blocks = data.reshape(-1, BLOCKS[encoding][1])
    if encoding == Q4_K:
        return decode_q4_k(blocks)
    if encoding == Q6_K:
        return decode_q6_k(blocks)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if encoding == Q8_0:
        return (scale * blocks[:, 2:].view(np.int8)).reshape(-1)
    packed = blocks[:, -16:]
    nibbles = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    if encoding == Q5_0:
        bits = np.unpackbits(blocks[:, 2:6].copy(), axis=1, bitorder="little")
        return (scale * (nibbles + 16 * bits.astype(np.float32) - 16)).reshape(-1)
    if encoding == Q4_0:
        return (scale * (nibbles - 8)).reshape(-1)
    offset = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    return (scale * nibbles + offset).reshape(-1)


def decode_q4_k(blocks):
    """Eight runs of 32 four-bit numbers, each with a six-bit factor and a six-bit offset."""
    half = blocks[:, :4].copy().view(np.float16).astype(np.float32)
    packed = blocks[:, 4:16].astype(np.uint8)
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    factor = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1).astype(np.float32)
    offset = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1).astype(np.float32)
    numbers = blocks[:, 16:].reshape(-1, 4, 1, 32)
    numbers = np.concatenate([numbers & 15, numbers >> 4], axis=2).reshape(-1, 8, 32).astype(np.float32)
    factor, offset = half[:, :1] * factor, half[:, 1:] * offset
    return (factor[..., None] * numbers - offset[..., None]).reshape(-1)


def decode_q6_k(blocks):
    """Sixteen runs of 16 six-bit numbers, each with a signed eight-bit factor."""
    scale = blocks[:, 208:].copy().view(np.float16).astype(np.float32)
    factor = blocks[:, 192:208].copy().view(np.int8).astype(np.float32)
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], dtype=np.uint8)[:, None] & 3
    numbers = ((low | high << 4).astype(np.float32) - 32).reshape(-1, 16, 16)
    return (scale[..., None] * factor[..., None] * numbers).reshape(-1)


def encode_q8_0(values):
    """Float32 values as Q8_0: 32 at a time, with a float16 scale of largest / 127."""
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = blocks * inverse
    # Halves away from zero.
    weights = np.copysign(np.floor(np.abs(scaled) + np.float32(0.5)), scaled).astype(np.int8)
    return np.concatenate([scale.astype(np.float16).view(np.uint8), weights.view(np.uint8)], axis=1).reshape(-1)


def write_q8_0(source, target):
    """A copy of a file with every matrix in Q8_0."""
    file = File(source)
    infos, parts, offset = [], [], 0
    for name, (shape, encoding, data) in file.tensors.items():
        if len(shape) > 1 and encoding != Q8_0:
            encoding, data = Q8_0, encode_q8_0(decode(data, encoding))
        text = name.encode()
        infos.append(struct.pack("<Q", len(text)) + text + struct.pack("<I", len(shape)))
        infos.append(struct.pack(f"<{len(shape)}Q", *shape[::-1]) + struct.pack("<IQ", encoding, offset))
        data = data.tobytes()
        data += bytes(-len(data) % file.alignment)
        parts.append(data)
        offset += len(data)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(file.tensors), file.field_count) + file.field_bytes + b"".join(infos)
    with open(target, "wb") as out:
        out.write(head + bytes(-len(head) % file.alignment))
        for part in parts:
            out.write(part)
