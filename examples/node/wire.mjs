// What goes over the wire: frames, and what the fields of each message may be (3-calls.md).

import { endianness } from "node:os";

const LITTLE = endianness() === "LE";
export const LIMITS = { message: 2 ** 26, calls: 256 };
export const LARGEST_TEXT = 4096;
export const LARGEST_CREDIT = 2 ** 31 - 1;
export const MOST_ATTACHMENTS = 4096;
export const ATTACHMENT = 0x464b0001;
export const STREAM = 0x464b0002;

// prettier-ignore
export const [HELLO, CALL, NOTIFY, RESULT, ERROR, CANCEL, ITEM, CREDIT, PROGRESS, LOG, PING, PONG,
  GOODBYE, ATTACH, SEND, SENT, GRANT] = Array(17).keys();
export const CARRIERS = [CALL, NOTIFY, RESULT, ERROR, ITEM, SEND];

// prettier-ignore
export const CODES = { protocol: -32600, method: -32601, params: -32602, encoding: -32603,
  raised: -32000, cancelled: -32001, deadline: -32002, calls: -32003, kind: -32004, closing: -32005 };

/** The host broke the protocol; the session ends. */
export class Fault extends Error {}

export const isUnsigned = (x) => Number.isSafeInteger(x) && x >= 0;
export const isId = (x) => isUnsigned(x) && x > 0;
export const isMap = (x) => x !== null && typeof x === "object" && Object.getPrototypeOf(x) === null;
const isAnyText = (x) => typeof x === "string";
const isText = (x) => typeof x === "string" && x.length <= 2 * LARGEST_TEXT && [...x].length <= LARGEST_TEXT;
const isMethod = (x) => isText(x) && x !== "";
const isNumber = (x) => typeof x === "number" || typeof x === "bigint";
const isDone = (x) => isNumber(x) && !(x < 0);
const isFlag = (x) => typeof x === "boolean";
const isCode = (x) => Number.isInteger(x);
const isCredit = (x) => isUnsigned(x) && x <= LARGEST_CREDIT;
const isAny = () => true;
const orNull = (check) => (x) => x === null || check(x);
const isVersions = (x) => Array.isArray(x) && x.length > 0 && x.every(isUnsigned);

/** Maps whose known keys are right; others are ignored. */
const isMapOf = (known, ...required) => (x) =>
  isMap(x) && required.every((key) => key in x) && Object.keys(known).every((key) => !(key in x) || known[key](x[key]));
const isFailure = isMapOf({ code: isCode, message: isAnyText }, "code", "message");
const isLimits = isMapOf({ message: isCredit, calls: isUnsigned });
const isGreeting = isMapOf({ protocol: isVersions, limits: isLimits }, "protocol");
const isMeta = isMapOf({ timeout: isNumber, credit: isCredit, progress: isFlag, tree: isAnyText, context: isMap });
const isSizes = (x) => Array.isArray(x) && x.length > 0 && x.length <= MOST_ATTACHMENTS && x.every(isUnsigned);

// The fields of each message; of CALL and NOTIFY the last two may be left off.
const FIELDS = {
  [HELLO]: [isGreeting],
  [CALL]: [isId, isMethod, Array.isArray, isMap, isMeta],
  [NOTIFY]: [isMethod, Array.isArray, isMap, isMeta],
  [RESULT]: [isId, isAny],
  [ERROR]: [isId, isFailure],
  [CANCEL]: [isId],
  [ITEM]: [isId, isAny],
  [CREDIT]: [isId, (x) => isCredit(x) && x > 0],
  [PROGRESS]: [isId, isDone, orNull(isNumber), isText],
  [LOG]: [isMap],
  [PING]: [isUnsigned],
  [PONG]: [isUnsigned],
  [GOODBYE]: [orNull(isFailure)],
  [ATTACH]: [isSizes],
  [SEND]: [isId, isUnsigned, isAny],
  [SENT]: [isId, isUnsigned, orNull(isFailure)],
  [GRANT]: [isId, isUnsigned, isCredit],
};

/** Is this a message of a type that is known here? A `Fault` if its fields are not what they must be. */
export function isKnown([type, ...fields]) {
  const checks = FIELDS[type];
  if (!checks) return false;
  const least = checks.length - (type === CALL || type === NOTIFY ? 2 : 0);
  const fits = fields.length >= least && fields.length <= checks.length;
  if (!fits || !fields.every((field, i) => checks[i](field))) throw new Fault(`message ${type} is not what it must be`);
  return true;
}

/** The frames that arrive; Buffers are joined only when a frame is complete. */
export async function* frames(input) {
  let parts = [];
  let [have, need, size, inside] = [0, 4, 0, false];
  for await (const chunk of input) {
    parts.push(chunk);
    have += chunk.length;
    while (have >= need) {
      const all = parts.length === 1 ? parts[0] : Buffer.concat(parts);
      const piece = all.subarray(0, need);
      have -= need;
      parts = have ? [all.subarray(need)] : [];
      if (inside) yield piece;
      else size = LITTLE ? piece.readInt32LE() : piece.readInt32BE();
      if (size < 0 || size > LIMITS.message) throw new Fault(`a message of ${size} bytes`);
      inside = !inside;
      need = inside ? size : 4;
    }
  }
}

/** The size that stands before `data`. */
export function sizeOf(data) {
  const size = Buffer.alloc(4);
  if (LITTLE) size.writeInt32LE(data.length);
  else size.writeInt32BE(data.length);
  return size;
}
