"use strict";
// Runs one %%node cell, as labkit.rig.noderun asks: node cell.js TASK ANSWER, two file descriptors.
//
// TASK      JSON: source; names (Python's values, by name); keep (the value is asked for, not to be printed)
// ANSWER    JSON, written at the end: value, error, line, and sent: [[words], kind of reply] of each command
// LABKIT_REDIS, in the environment: JSON with the address of Redis, and hidden ([text, what stands for it in
//           an error]); it is read and forgotten at once.
//
// The cell sees Python's values as globals, `redis` and `Redis` (both made when first used), and `require`.

const fs = require("fs");
const util = require("util");
const vm = require("vm");

const task = JSON.parse(fs.readFileSync(Number(process.argv[2]), "utf8"));
const address = JSON.parse(process.env.LABKIT_REDIS || "{}");
delete process.env.LABKIT_REDIS;
const answer = { value: null, error: null, line: null, sent: [] };
let ended = false;

// What a client says on its own account, and what only listens: of no effect on the keys.
const UNRECORDED = new Set(
  "hello auth select info client cluster readonly quit monitor subscribe psubscribe ssubscribe".split(" "),
);
const clients = new Set();
let reason = ""; // why `redis` could not connect, the last time

function options() {
  const read = (name) => (address.tls[name] ? fs.readFileSync(address.tls[name]) : undefined);
  const tls = address.tls && {
    ca: read("ca"),
    cert: read("cert"),
    key: read("key"),
    rejectUnauthorized: address.tls.verify,
    ...(address.tls.names ? {} : { checkServerIdentity: () => undefined }),
  };
  // After disconnect() ioredis keeps a process for 2 s by default, also where there is no connection any more.
  return { lazyConnect: true, disconnectTimeout: 100, ...address.options, ...(tls ? { tls } : {}) };
}

function library() {
  const { Redis } = require("ioredis");
  for (const kind of [Redis, Redis.Cluster]) {
    const { connect, sendCommand } = kind.prototype;
    kind.prototype.connect = function (...rest) {
      clients.add(this);
      return connect.apply(this, rest);
    };
    kind.prototype.sendCommand = function (command, ...rest) {
      note(command);
      return sendCommand.call(this, command, ...rest);
    };
    kind.prototype[util.inspect.custom] = function () {
      return `${this.isCluster ? "Cluster" : "Redis"} { ${this.status} }`; // its options hold the password
    };
  }
  return Redis;
}

const noted = new WeakSet();

// A command that has no answer is not recorded: nobody knows whether it ran.
function note(command) {
  const name = command.name.toLowerCase();
  if (noted.has(command) || UNRECORDED.has(name)) return;
  noted.add(command);
  const entry = [[name, ...command.args.flat(Infinity).map(String)], null];
  answer.sent.push(entry);
  const { resolve, reject } = command; // not promise.then(): an error that nobody awaits would count as seen
  command.resolve = (reply) => ((entry[1] = kindOf(reply)), resolve(reply));
  command.reject = (error) => ((entry[1] = error.name === "ReplyError" ? "error" : null), reject(error));
}

function kindOf(reply) {
  if (reply === null) return "nil";
  if (typeof reply !== "number") return "something";
  return reply < 0 ? "negative" : reply === 0 ? "zero" : "something";
}

function make(Redis) {
  if (!address.options && !address.cluster) throw new Error("no client of Redis was given to this cell");
  const made = address.cluster
    ? new Redis.Cluster(address.cluster, { lazyConnect: true, redisOptions: options() })
    : new Redis(options());
  made.on("error", (error) => (reason = error.message)); // without a listener ioredis prints each of them
  return made;
}

// A global that is made when it is first used, and may be replaced.
function lazily(name, create) {
  const set = (value) =>
    Object.defineProperty(globalThis, name, { value, writable: true, configurable: true });
  Object.defineProperty(globalThis, name, { get: () => (set(create()), globalThis[name]), set, configurable: true });
}

// The cell as the body of an async function which returns its last expression, unless that ends with `;`:
// of the lines that can be split off as one expression, as many as possible. What stands before it must be whole
// by itself, and no head of a loop.
function compile(source) {
  const lines = source.split("\n");
  const script = (head, tail) =>
    new vm.Script(`(async () => {\n${head}${tail}\n})`, { filename: "cell", lineOffset: -1 });
  for (let at = 0; at < lines.length; at += 1) {
    const tail = lines.slice(at).join("\n");
    if (!/^\s*(async\s+function|function|class)\b/.test(tail)) {
      try {
        new vm.Script(`async () => (\n${tail}\n)`);
        script(lines.slice(0, at).join("\n"), "");
        return script(lines.slice(0, at).join("\n") + (at ? "\n" : ""), `return (${tail}\n);`);
      } catch (error) {
        if (error.name !== "SyntaxError") throw error;
      }
    }
  }
  return script(source, "");
}

function fail(error) {
  if (answer.error !== null) return;
  const thrown = error instanceof Error || (error && error.message && error.stack);
  const text = thrown ? `${error.name}: ${error.message}` : `thrown: ${util.inspect(error)}`;
  answer.error = text.split("\n")[0];
  if (reason && thrown && /MaxRetriesPerRequest|Connection is closed|Failed to refresh/.test(answer.error))
    answer.error += ` (${reason.split("\n")[0]})`;
  for (const [secret, name] of address.hidden || []) answer.error = answer.error.split(secret).join(name);
  const found = /\bcell:(\d+)/.exec((thrown && error.stack) || "");
  answer.line = found ? Number(found[1]) : null;
  process.exitCode = 1;
}

// What the cell has started may end: replies that are under way still come, and timers are waited for.
function close() {
  ended = true;
  for (const client of clients) {
    const quit = () => client.quit().catch(() => {});
    if (client.status === "reconnecting") client.disconnect();
    else if (client.isCluster && ["connecting", "connect"].includes(client.status)) {
      client.once("ready", quit); // a cluster's client would give up at once what waits for it
      client.once("reconnecting", () => client.disconnect());
    } else quit();
  }
}

// As Python gets it; what JSON would silently empty or leave out is an error.
function kept(value) {
  if (value instanceof Map || value instanceof Set || ["function", "symbol"].includes(typeof value))
    throw new TypeError(`--out: JSON cannot hold ${util.inspect(value)}`);
  return JSON.parse(JSON.stringify(value));
}

async function run() {
  Object.assign(globalThis, task.names);
  globalThis.require = require;
  lazily("Redis", library);
  lazily("redis", () => make(globalThis.Redis));
  try {
    const value = await compile(task.source).runInThisContext()();
    if (value !== undefined) {
      if (task.keep) answer.value = kept(value);
      else console.log(util.inspect(value, { breakLength: 100 }));
    }
  } catch (error) {
    fail(error);
  }
  close();
}

// An error that nobody awaits, also of what goes on behind the last line; but what waits for a client that close()
// has ended is given up for that reason alone.
function late(error) {
  if (ended && error && error.message === "Connection is closed.") return;
  fail(error);
  if (!ended) close();
}

process.on("unhandledRejection", late);
process.on("uncaughtException", late);
process.on("beforeExit", () => {
  if (!ended) answer.error = "an await of this cell can never end: nothing is left that could end it";
});
process.on("exit", () => fs.writeSync(Number(process.argv[3]), JSON.stringify(answer)));
run();
