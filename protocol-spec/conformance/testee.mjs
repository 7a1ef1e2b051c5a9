// The framing of 1-framing.md in JavaScript (Node), and a testee for run.py. No packages.

import { endianness } from "node:os";

const LITTLE = endianness() === "LE"; // F-1: the byte order of the host
const MAX_SIZE = 2 ** 31 - 1;
const EDGE = 0, INSIDE = 3, NEGATIVE = 4, TOO_LARGE = 5;

/** One of the four ends, as an exit status. */
class End extends Error {
  constructor(status) {
    super(`the channel ended: ${status}`);
    this.status = status;
  }
}

class Reader {
  #chunks;
  #held = Buffer.alloc(0);

  constructor(readable) {
    this.#chunks = readable[Symbol.asyncIterator]();
  }

  /** `size` bytes; fewer only if the stream ends. Holds only what came (F-17). */
  async #upTo(size) {
    const parts = [this.#held];
    let have = this.#held.length;
    while (have < size) {
      const { value, done } = await this.#chunks.next();
      if (done) break;
      parts.push(value);
      have += value.length;
    }
    const all = Buffer.concat(parts);
    this.#held = all.subarray(size);
    return all.subarray(0, size);
  }

  /** A bare integer, or a size. */
  async int() {
    const data = await this.#upTo(4);
    if (data.length < 4) throw new End(data.length ? INSIDE : EDGE);
    return LITTLE ? data.readInt32LE() : data.readInt32BE();
  }

  /** A message's payload. */
  async message(limit) {
    const size = await this.int();
    if (size < 0) throw new End(NEGATIVE);
    if (size > limit) throw new End(TOO_LARGE);
    const payload = await this.#upTo(size);
    if (payload.length < size) throw new End(INSIDE);
    return payload;
  }
}

function encodeInt(number) {
  const data = Buffer.alloc(4);
  if (LITTLE) data.writeInt32LE(number); // both throw outside 32 bits (F-23)
  else data.writeInt32BE(number);
  return data;
}

function encodeMessage(payload) {
  if (payload.length > MAX_SIZE) throw new RangeError("the payload is over 2^31-1 bytes"); // F-22
  return Buffer.concat([encodeInt(payload.length), payload]);
}

function write(data) {
  return new Promise((resolve, reject) => {
    process.stdout.write(data, (error) => (error ? reject(error) : resolve()));
  });
}

/** Echo until an end; the exit status names it. */
async function main(limit, reads) {
  const reader = new Reader(process.stdin);
  try {
    for (let turn = 0; ; turn++) {
      if (reads[turn % reads.length] === "m") {
        await write(encodeMessage(await reader.message(limit)));
      } else {
        const number = await reader.int();
        await write(encodeInt(number));
        await write(encodeMessage(Buffer.from(String(number))));
      }
    }
  } catch (end) {
    if (!(end instanceof End)) throw end;
    return end.status;
  }
}

process.exitCode = await main(Number(process.argv[2]), process.argv[3]);
process.stdin.destroy();
