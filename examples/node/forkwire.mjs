// A worker of Forkwire in Node: protocol-spec/3-calls.md, the callee's side and plain calls back.
//
//   import { serve } from "./forkwire.mjs";
//   process.exit(await serve({ add: (call, a, b) => a + b, async *count(call, n) { ... } }));
//
// A method gets its call first: `call.signal` (aborted by a cancel or a deadline; pass it on),
// `await call.host("method", ...args)`, `call.progress(done, total, text)`. What yields is a
// stream. An argument that the caller streams is an async iterable.

import { Socket } from "node:net";
import { Tag, decode, encode } from "./cbor.mjs";
// prettier-ignore
import { ATTACH, ATTACHMENT, CALL, CANCEL, CARRIERS, CODES, CREDIT, ERROR, Fault, GOODBYE, GRANT, HELLO,
  ITEM, LARGEST_CREDIT, LARGEST_TEXT, LIMITS, LOG, MOST_ATTACHMENTS, NOTIFY, PING, PONG, PROGRESS, RESULT,
  SEND, SENT, STREAM, frames, isId, isKnown, isUnsigned, sizeOf } from "./wire.mjs";

const SHARING = [25, 28, 29, 256]; // tags by which one value stands in many places
const WINDOW = 16; // items of an argument stream that may be on their way
const LARGEST_TIMER = 2 ** 31 - 1; // ms; setTimeout fires at once beyond

/** Why a call of the host's ends with no result, when it is not its method's fault. */
class Refusal extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/** A call to the host ended badly; `error` is the map that came. */
export class CallError extends Error {
  constructor(error) {
    super(error.message);
    Object.assign(this, { name: error.type ?? "CallError", code: error.code, error });
  }
}

/** An argument that the caller streams. */
class ArgumentStream {
  constructor(link, id, k) {
    Object.assign(this, { link, id, k, items: [], allowed: 0, ended: false, left: false, wake: null });
  }

  push(item) {
    if (this.ended || this.allowed-- === 0) throw new Fault("an item of an argument stream that may not come");
    if (!this.left) this.items.push(item);
    this.wake?.();
  }

  end(error) {
    if (this.ended) throw new Fault("an argument stream ended twice");
    Object.assign(this, { ended: true, error });
    this.wake?.();
  }

  grant(count) {
    this.allowed += count;
    if (this.link.running.has(this.id) && !this.ended) this.link.send([GRANT, this.id, this.k, count]);
  }

  async *[Symbol.asyncIterator]() {
    const { signal } = this.link.running.get(this.id) ?? { signal: AbortSignal.abort() };
    signal.addEventListener("abort", () => this.wake?.());
    try {
      for (;;) {
        signal.throwIfAborted();
        const open = this.allowed + this.items.length;
        if (open <= WINDOW / 2) this.grant(WINDOW - open);
        if (this.items.length) yield this.items.shift();
        else if (!this.ended) await new Promise((resolve) => (this.wake = resolve));
        else if (this.error) throw new CallError(this.error);
        else return;
      }
    } finally {
      this.left = true;
      this.grant(0);
    }
  }
}

/** A call of the host's, as its method sees it. */
class Call {
  #link;
  #controller = new AbortController();

  constructor(link, id, meta) {
    this.#link = link;
    Object.assign(this, { id, meta, signal: this.#controller.signal, credit: meta.credit, wake: null });
    this.streams = new Map();
    const ms = meta.timeout === undefined ? Infinity : meta.timeout * 1000;
    if (ms < LARGEST_TIMER) this.timer = setTimeout(() => this.stop(CODES.deadline, "its time is over"), ms);
  }

  stop(code, why) {
    this.#controller.abort(new Refusal(code, why));
    this.wake?.();
  }

  /** Wait until the next item may be sent. */
  async wanted() {
    while (this.credit === 0 && !this.signal.aborted) await new Promise((resolve) => (this.wake = resolve));
    this.signal.throwIfAborted();
    this.credit--;
  }

  host(method, ...args) {
    const { tree } = this.meta;
    return this.#link.call(method, args, tree === undefined ? {} : { tree }, this.signal);
  }

  progress(done, total = null, text = "") {
    if (this.meta.progress !== true || this.signal.aborted) return;
    this.#link.send([PROGRESS, this.id, done, total, String(text).slice(0, LARGEST_TEXT)]);
  }
}

const isStream = (method) => /Generator/.test(method.constructor.name);

class Link {
  running = new Map(); // the host's calls, by id
  #calls = new Map(); // ours
  #last = 0;
  #next = 1;
  #peer = "new";
  #left = false;
  #attached = null;
  #mute = false; // the session is over
  #streamed = 0; // argument streams in the message at hand
  #notified = 0; // notifications that run

  constructor(methods, input, output) {
    Object.assign(this, { methods, input, output, limit: 2 ** 20 });
  }

  /** The frames of a message: the attachments first. */
  #frames(message) {
    const attachments = [];
    const body = encode(message, CARRIERS.includes(message[0]) ? attachments : undefined);
    if (attachments.length > MOST_ATTACHMENTS) return [encode(message)];
    if (!attachments.length) return [body];
    return [encode([ATTACH, attachments.map((data) => data.length)]), ...attachments, body];
  }

  send(message) {
    if (this.#mute) return;
    let all;
    try {
      all = this.#frames(message);
    } catch (error) {
      throw new Refusal(CODES.encoding, error.message);
    }
    const total = all.reduce((sum, data) => sum + data.length, 0);
    if (total > this.limit) throw new Refusal(CODES.encoding, `${total} bytes are more than the host takes`);
    for (const data of all) {
      this.output.write(sizeOf(data));
      this.output.write(data);
    }
    if (message[0] === GOODBYE) this.#left = true;
    if (message[0] === GOODBYE && message[1]) this.#mute = true;
  }

  /** Talk until the session is over; what the process should exit with. */
  async run(name) {
    const kind = ([key, method]) => [key, isStream(method) ? "async_generator" : "async"];
    const service = { name, methods: Object.fromEntries(Object.entries(this.methods).map(kind)) };
    this.send([HELLO, { protocol: [1], limits: LIMITS, service, features: [], pid: process.pid }]);
    let status = 0;
    try {
      for await (const frame of frames(this.input)) {
        this.#frame(frame);
        if (this.#over()) break;
      }
    } catch (error) {
      if (this.#over()) return 0;
      if (!(error instanceof Fault)) throw error;
      process.stderr.write(`the host broke the protocol: ${error.message}\n`);
      if (!this.#left) this.send([GOODBYE, { code: CODES.protocol, message: error.message }]);
      status = 1;
    }
    for (const call of this.running.values()) call.stop(CODES.cancelled, "the session is over");
    const over = new CallError({ code: CODES.closing, message: "the session is over" });
    for (const { reject } of this.#calls.values()) reject(over);
    await new Promise((resolve) => {
      this.output.end(resolve);
      setTimeout(resolve, 1000); // a host that does not read
    });
    return status;
  }

  #over() {
    return this.#peer === "left" && this.#left && !this.running.size && !this.#calls.size;
  }

  #frame(frame) {
    const attached = this.#attached;
    if (attached && attached.data.length < attached.sizes.length) {
      if (frame.length !== attached.sizes[attached.data.length]) throw new Fault("an attachment of another size");
      return attached.data.push(frame);
    }
    this.#attached = null;
    const message = this.#decode(frame, attached?.data ?? []);
    const known = isKnown(message);
    if (this.#streamed && message[0] !== CALL) throw new Fault("an argument stream that is no argument");
    if (attached && !CARRIERS.includes(message[0])) throw new Fault(`message ${message[0]} takes no attachments`);
    this.#allowed(message[0]);
    if (known) this[message[0]](...message.slice(1));
    else if (message[0] > 23 && message[0] % 2) this.#unknown(message[1]);
  }

  #decode(frame, attachments) {
    this.#streamed = 0;
    const left = new Map(attachments.entries());
    const tagged = (tag, value) => {
      if (tag === STREAM) this.#streamed += isUnsigned(value) ? 1 : NaN;
      if (SHARING.includes(tag)) throw new Fault(`tag ${tag} is not taken`);
      if (tag !== ATTACHMENT) return new Tag(tag, value);
      const data = left.get(value);
      if (!left.delete(value)) throw new Fault("there is no such attachment, or it is named twice");
      return data;
    };
    try {
      const message = decode(frame, tagged);
      if (left.size) throw new Fault("an attachment that is not named");
      if (Array.isArray(message) && isUnsigned(message[0])) return message;
    } catch (error) {
      throw new Fault(error.message);
    }
    throw new Fault("a message that is not an array with its type first");
  }

  /** May the peer say this now? */
  #allowed(type) {
    const first = type === HELLO || type === GOODBYE;
    const begins = [CALL, NOTIFY, GOODBYE].includes(type);
    const ok = { new: first, open: type !== HELLO, left: type !== HELLO && !begins }[this.#peer];
    if (!ok) throw new Fault(`message ${type} when the host's side is ${this.#peer}`);
  }

  [HELLO](about) {
    this.#peer = "open";
    if (!about.protocol.includes(1)) throw new Fault("no version of the protocol in common");
    this.limit = about.limits?.message ?? 2 ** 31 - 1;
  }

  [CALL](id, method, args, kwargs = {}, meta = {}) {
    const call = this.#open(id, meta);
    const streamed = (value) => value instanceof Tag && value.tag === STREAM;
    for (const { value } of [...args, ...Object.values(kwargs)].filter(streamed)) {
      call.streams.set(value, new ArgumentStream(this, id, value));
    }
    if (call.streams.size !== this.#streamed) throw new Fault("an argument stream twice, or in a value");
    args = args.map((value) => (streamed(value) ? call.streams.get(value.value) : value));
    this.#answer(call, async () => {
      this.#fits(method, args, kwargs, call);
      if (this.running.size > LIMITS.calls) throw new Refusal(CODES.calls, "too many calls are in flight");
      const answer = this.methods[method](call, ...args);
      if (call.credit === undefined) return await answer;
      await this.#items(call, answer);
      return null;
    });
  }

  #open(id, meta) {
    if (!isId(id) || id <= this.#last) throw new Fault(`a call of id ${id} after ${this.#last}`);
    this.#last = id;
    const call = new Call(this, id, meta);
    this.running.set(id, call);
    return call;
  }

  /** Throw the `Refusal` of a call that cannot be run. */
  #fits(method, args, kwargs, call) {
    const handler = Object.hasOwn(this.methods, method) ? this.methods[method] : null;
    if (!handler) throw new Refusal(CODES.method, `there is no method ${JSON.stringify(method)}`);
    const streamed = isStream(handler);
    if (streamed !== (call.credit !== undefined)) {
      throw new Refusal(CODES.kind, `${method} is ${streamed ? "streamed, not called" : "called, not streamed"}`);
    }
    if (this.#left) throw new Refusal(CODES.closing, "this worker is closing");
    const least = handler.length - 1;
    if (args.length < least || Object.keys(kwargs).length) {
      throw new Refusal(CODES.params, `${method} takes ${least} arguments, by position`);
    }
  }

  async #items(call, iterator) {
    try {
      for (;;) {
        await call.wanted();
        const { done, value } = await iterator.next();
        if (done) return;
        this.send([ITEM, call.id, value]);
      }
    } finally {
      await iterator.return();
    }
  }

  /** The one answer of a call. */
  async #answer(call, work) {
    let message;
    try {
      message = [RESULT, call.id, await work()];
    } catch (error) {
      message = [ERROR, call.id, this.#failure(call, error)];
    }
    clearTimeout(call.timer);
    this.running.delete(call.id);
    try {
      this.send(message);
    } catch ({ code, message }) {
      this.send([ERROR, call.id, { code, message }]);
    }
    if (this.#over()) this.input.destroy();
  }

  #failure(call, error) {
    if (call.signal.aborted && error?.name === "AbortError") error = call.signal.reason;
    if (error instanceof Refusal) return { code: error.code, message: error.message };
    const { name, message = error, stack } = error ?? {};
    return { code: CODES.raised, type: String(name), message: String(message), traceback: String(stack) };
  }

  async [NOTIFY](method, args) {
    if (this.#notified >= LIMITS.calls || !Object.hasOwn(this.methods, method)) {
      return console.error(`not run: ${JSON.stringify(method)}`);
    }
    this.#notified++;
    try {
      await this.methods[method](new Call(this, 0, {}), ...args);
    } catch (error) {
      console.error(error);
    }
    this.#notified--;
  }

  #unknown(id) {
    this.#answer(this.#open(id, {}), async () => {
      throw new Refusal(CODES.method, "this message is of a version that is not spoken here");
    });
  }

  /** The call of the host's that a message is about; nothing if it is over. */
  #about(id) {
    const call = this.running.get(id);
    if (call?.cancelled) throw new Fault("a message about a call that was cancelled");
    if (!call && id > this.#last) throw new Fault(`a message about call ${id}, which was never made`);
    return call;
  }

  [CANCEL](id) {
    const call = this.#about(id);
    if (call) call.cancelled = true;
    call?.stop(CODES.cancelled, "the call was cancelled");
  }

  [CREDIT](id, count) {
    const call = this.#about(id);
    if (!call) return;
    const fits = call.credit !== undefined && call.credit + count <= LARGEST_CREDIT;
    if (!fits) throw new Fault("credit that cannot be given");
    call.credit += count;
    call.wake?.();
  }

  #stream(id, k) {
    const call = this.#about(id);
    if (call && !call.streams.has(k)) throw new Fault(`call ${id} has no argument stream ${k}`);
    return call?.streams.get(k);
  }

  [SEND](id, k, value) {
    this.#stream(id, k)?.push(value);
  }

  [SENT](id, k, error) {
    this.#stream(id, k)?.end(error);
  }

  /** Call the host. */
  async call(method, args, meta, signal) {
    signal.throwIfAborted();
    if (this.#peer === "left" || this.#left) {
      throw new CallError({ code: CODES.closing, message: "the host is closing" });
    }
    const id = this.#next;
    try {
      this.send([CALL, id, method, args, {}, meta]);
    } catch (error) {
      throw new CallError(error);
    }
    this.#next++;
    const cancel = () => this.#calls.has(id) && this.send([CANCEL, id]);
    signal.addEventListener("abort", cancel);
    const answer = new Promise((resolve, reject) => this.#calls.set(id, { resolve, reject }));
    return answer.finally(() => signal.removeEventListener("abort", cancel));
  }

  #ours(id) {
    const call = this.#calls.get(id);
    if (!call) throw new Fault(`an answer to call ${id}, which is not open`);
    return call;
  }

  [RESULT](id, value) {
    this.#ours(id).resolve(value);
    this.#calls.delete(id);
  }

  [ERROR](id, error) {
    this.#ours(id).reject(new CallError(error));
    this.#calls.delete(id);
  }

  [ITEM](id) {
    throw new Fault(`an item of call ${id}, which is no stream`);
  }

  [PROGRESS](id) {
    this.#ours(id);
  }

  [GRANT](id) {
    if (this.#calls.has(id) || id >= this.#next) throw new Fault(`call ${id} has no argument streams`);
  }

  [PING](n) {
    this.send([PONG, n]);
  }

  [PONG]() {
    throw new Fault("a pong that answers no ping");
  }

  [LOG]() {}

  [ATTACH](sizes) {
    const total = sizes.reduce((sum, size) => sum + size, 0);
    if (total > LIMITS.message) throw new Fault(`attachments of ${total} bytes`);
    this.#attached = { sizes, data: [] };
  }

  [GOODBYE]() {
    this.#peer = "left";
    if (!this.#left) this.send([GOODBYE, null]);
  }
}

/** Serve `methods` to the process that started this one; what to exit with when it is over. */
export function serve(methods, name = "node") {
  const [input, output] = (process.env.FORKWIRE_FDS ?? "3,4").split(",").map(Number);
  const reader = new Socket({ fd: input, readable: true, writable: false });
  const writer = new Socket({ fd: output, readable: false, writable: true });
  writer.on("error", () => {}); // the host is gone: the input ends too
  return new Link(methods, reader, writer).run(name);
}
