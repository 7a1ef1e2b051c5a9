// CBOR (RFC 8949) as 3-calls.md uses it: definite lengths, one item, bounded depth. No packages.
//
// Integers that are not safe as numbers are BigInts; maps with text keys alone are objects without
// a prototype, others are Maps; tags but for big integers and sets stay `Tag`s, and go back as such.

const MAX_DEPTH = 200;
const ATTACHMENT = 0x464b0001;
const ATTACH_FROM = 65536; // bytes; shorter ones are cheaper inside the message

export class Tag {
  constructor(tag, value) {
    this.tag = tag;
    this.value = value;
  }
}

/** The bytes of `value`; with a list of `attachments`, large byte strings go there instead. */
export function encode(value, attachments) {
  const parts = [];
  write(parts, value, attachments, 0);
  return Buffer.concat(parts);
}

function head(major, count) {
  const first = major << 5;
  if (count < 24) return Buffer.from([first | Number(count)]);
  if (count < 0x100) return Buffer.from([first | 24, Number(count)]);
  const data = Buffer.alloc(count < 0x10000 ? 3 : count < 0x100000000 ? 5 : 9);
  data[0] = first | (data.length === 3 ? 25 : data.length === 5 ? 26 : 27);
  if (data.length === 9) data.writeBigUInt64BE(BigInt(count), 1);
  else data.writeUIntBE(Number(count), 1, data.length - 1);
  return data;
}

function write(parts, value, attachments, depth) {
  const nest = (item) => write(parts, item, attachments, depth + 1);
  if (depth > MAX_DEPTH) throw new TypeError(`a value is nested deeper than ${MAX_DEPTH}`);
  if (value === null || value === undefined) parts.push(Buffer.from([0xf6]));
  else if (typeof value === "boolean") parts.push(Buffer.from([value ? 0xf5 : 0xf4]));
  else if (typeof value === "bigint") writeBig(parts, value);
  else if (typeof value === "number") writeNumber(parts, value);
  else if (typeof value === "string") writeText(parts, value);
  else if (value instanceof Uint8Array) writeBytes(parts, value, attachments);
  else if (value instanceof Date) nest(new Tag(0, value.toISOString()));
  else if (value instanceof Set) nest(new Tag(258, [...value]));
  else if (value instanceof Tag) {
    parts.push(head(6, value.tag));
    nest(value.value);
  } else if (Array.isArray(value)) {
    parts.push(head(4, value.length));
    value.forEach(nest);
  } else if (value instanceof Map || isPlain(value)) {
    const entries = value instanceof Map ? [...value] : Object.entries(value);
    parts.push(head(5, entries.length));
    entries.flat(1).forEach(nest);
  } else throw new TypeError(`a value of type ${value.constructor?.name ?? typeof value} has no encoding`);
}

function isPlain(value) {
  const prototype = typeof value === "object" && Object.getPrototypeOf(value);
  return prototype === null || prototype === Object.prototype;
}

function writeText(parts, value) {
  if (!value.isWellFormed()) throw new TypeError("a text with half a surrogate pair has no encoding");
  const data = Buffer.from(value);
  parts.push(head(3, data.length), data);
}

function writeBytes(parts, value, attachments) {
  if (attachments && value.length >= ATTACH_FROM) {
    parts.push(head(6, ATTACHMENT), head(0, attachments.push(value) - 1));
  } else parts.push(head(2, value.length), value);
}

function writeNumber(parts, value) {
  if (Number.isSafeInteger(value) && !Object.is(value, -0)) return parts.push(integer(value));
  const data = Buffer.alloc(9);
  data[0] = 0xfb;
  data.writeDoubleBE(value, 1);
  parts.push(data);
}

const integer = (value) => (value < 0 ? head(1, -1n - BigInt(value)) : head(0, value));

function writeBig(parts, value) {
  const size = value < 0n ? -1n - value : value;
  if (size < 2n ** 64n) return parts.push(integer(value));
  const hex = size.toString(16);
  const data = Buffer.from(hex.length % 2 ? `0${hex}` : hex, "hex");
  parts.push(head(6, value < 0n ? 3 : 2), head(2, data.length), data);
}

/** The value of `data`, all of it; `tagged(tag, value, depth)` may replace a tagged value. */
export function decode(data, tagged = (tag, value) => new Tag(tag, value)) {
  const reader = new Decoder(data, tagged);
  const value = reader.item(0);
  if (reader.at !== data.length) throw new RangeError("there are bytes after the CBOR item");
  return value;
}

class Decoder {
  at = 0;

  constructor(data, tagged) {
    this.data = Buffer.from(data.buffer, data.byteOffset, data.length);
    this.tagged = tagged;
  }

  take(size) {
    if (size > this.data.length - this.at) throw new RangeError("the CBOR item is cut short");
    this.at += Number(size);
    return this.data.subarray(this.at - Number(size), this.at);
  }

  count(info) {
    if (info < 24) return info;
    if (info > 27) throw new RangeError("indefinite lengths are not used here");
    const bytes = this.take(2 ** (info - 24));
    const value = info === 27 ? bytes.readBigUInt64BE() : bytes.readUIntBE(0, bytes.length);
    return value <= Number.MAX_SAFE_INTEGER ? Number(value) : value;
  }

  item(depth) {
    if (depth > MAX_DEPTH) throw new RangeError(`a value is nested deeper than ${MAX_DEPTH}`);
    const first = this.take(1)[0];
    const major = first >> 5;
    if (major === 7) return this.simple(first & 31);
    const count = this.count(first & 31);
    if (major === 0) return count;
    if (major === 1) return typeof count === "number" && count < 2 ** 53 - 1 ? -1 - count : -1n - BigInt(count);
    if (major === 2) return this.take(count);
    if (major === 3) return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.take(count));
    if (major === 6) return this.tag(count, this.item(depth + 1), depth);
    if (count > this.data.length - this.at) throw new RangeError("the CBOR item is cut short");
    if (major === 4) return Array.from({ length: count }, () => this.item(depth + 1));
    return this.map(count, depth);
  }

  map(count, depth) {
    const map = new Map();
    for (let i = 0; i < count; i++) {
      const key = this.item(depth + 1);
      if (map.has(key)) throw new RangeError("a map has a key twice");
      map.set(key, this.item(depth + 1));
    }
    if (![...map.keys()].every((key) => typeof key === "string")) return map;
    const object = Object.create(null);
    for (const [key, value] of map) object[key] = value;
    return object;
  }

  tag(tag, value, depth) {
    if (tag === 258 && Array.isArray(value)) return new Set(value);
    if ((tag === 2 || tag === 3) && value instanceof Uint8Array) {
      const size = BigInt(`0x${value.toString("hex") || "0"}`);
      return tag === 2 ? size : -1n - size;
    }
    return this.tagged(tag, value, depth);
  }

  simple(info) {
    if (info === 20 || info === 21) return info === 21;
    if (info === 22) return null;
    if (info === 25) return half(this.take(2).readUInt16BE());
    if (info === 26) return this.take(4).readFloatBE();
    if (info === 27) return this.take(8).readDoubleBE();
    throw new RangeError(`simple value ${info} is not used here`);
  }
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
}
