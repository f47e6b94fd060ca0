// W-06: a watch of a Node client goes on after its member was killed and started again, with nothing lost, repeated or reordered.
//
// Node's package `etcd3` does what `Watcher` does here: it connects again, and watches from behind what it has heard. What is tried is
// a member and the HTTP/2 of Node (nghttp2), which is another one than those of Go, Rust and gRPC's C core. Messages are
// written by hand: there are five fields of interest.
//
//   node tests/node/watch.mjs COMMAND      COMMAND is a server's: everwatch, or etcd to see that this is right
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import http2 from "node:http2";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

const PATIENCE_MS = 60_000;
const PUTS = 200;
const RESTARTS = 3;
const PREFIX = "node/";
// What comes before a message: whether it is compressed, and its length.
const PREFIX_BYTES = 5;

function varint(number) {
    const bytes = [];
    for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
    return Buffer.from([...bytes, number]);
}

const field = (tag, value) => Buffer.isBuffer(value)
    ? Buffer.concat([varint(tag << 3 | 2), varint(value.length), value])
    : Buffer.concat([varint(tag << 3), varint(value)]);

// The fields of a message, each with the list of its values.
function parse(bytes) {
    const fields = {};
    let at = 0;
    const number = () => {
        let value = 0, factor = 1, byte;
        do {
            byte = bytes[at++];
            value += (byte & 127) * factor;
            factor *= 128;
        } while (byte > 127);
        return value;
    };
    while (at < bytes.length) {
        const key = number();
        let value = number();
        if ((key & 7) === 2) value = bytes.subarray(at, at += value);
        (fields[key >>> 3] ??= []).push(value);
    }
    return fields;
}

function framed(message) {
    const head = Buffer.alloc(PREFIX_BYTES);
    head.writeUInt32BE(message.length, 1);
    return Buffer.concat([head, message]);
}

// A call on a connection of its own; `heard` is given every message. It is over when either is.
function call(port, path, message, heard, over) {
    const session = http2.connect(`http://127.0.0.1:${port}`);
    const ends = () => { session.destroy(); over?.(); over = undefined; };
    session.on("error", ends).on("close", ends);
    const stream = session.request({ ":method": "POST", ":path": path, "content-type": "application/grpc", te: "trailers" });
    let rest = Buffer.alloc(0);
    stream.on("data", data => {
        rest = Buffer.concat([rest, data]);
        while (rest.length >= PREFIX_BYTES && rest.length >= PREFIX_BYTES + rest.readUInt32BE(1)) {
            const end = PREFIX_BYTES + rest.readUInt32BE(1);
            heard(parse(rest.subarray(PREFIX_BYTES, end)));
            rest = rest.subarray(end);
        }
    });
    stream.on("error", ends).on("close", ends);
    stream.write(framed(message));
    return { stream, ends };
}

// Whether it was acknowledged, and with which revision.
const put = (port, key, value) => new Promise(resolve => {
    const message = Buffer.concat([field(1, Buffer.from(key)), field(2, Buffer.from(value))]);
    const { stream } = call(port, "/etcdserverpb.KV/Put", message, answer => resolve(parse(answer[1][0])[3][0]), () => resolve(null));
    stream.end();
});

class Watcher {
    constructor(port) {
        Object.assign(this, { port, next: 0, events: [], connections: 0, created: 0, waiting: [] });
        this.connect();
    }

    connect() {
        const create = [field(1, Buffer.from(PREFIX)), field(2, Buffer.from("node0"))];
        if (this.next) create.push(field(3, this.next));
        this.connections += 1;
        const again = () => { if (!this.closed) setTimeout(() => this.connect(), 20); };
        const request = field(1, Buffer.concat(create));
        this.current = call(this.port, "/etcdserverpb.Watch/Watch", request, response => this.hear(response), again);
    }

    hear(response) {
        if (response[4]) throw new Error("the watch was cancelled");
        if (response[3]) {
            this.created += 1;
            // Nothing was heard of yet: what comes after this is what it wants.
            this.next ||= parse(response[1][0])[3][0] + 1;
        }
        for (const event of response[11] ?? []) {
            const kv = parse(parse(event)[2][0]);
            this.events.push({ key: kv[1][0].toString(), revision: kv[3][0] });
            this.next = kv[3][0] + 1;
        }
        this.waiting = this.waiting.filter(({ until, resolve }) => !until() || resolve());
    }

    until(condition) {
        return condition() ? undefined : new Promise(resolve => this.waiting.push({ until: condition, resolve }));
    }

    close() {
        this.closed = true;
        this.current.ends();
    }
}

async function freePort() {
    const server = net.createServer().listen(0, "127.0.0.1");
    await once(server, "listening");
    const { port } = server.address();
    server.close();
    await once(server, "close");
    return port;
}

async function start(command, directory, [client, peer]) {
    const urls = { client: `http://127.0.0.1:${client}`, peer: `http://127.0.0.1:${peer}` };
    const member = spawn(command, [
        "--name=m", `--data-dir=${directory}`, `--listen-client-urls=${urls.client}`, `--advertise-client-urls=${urls.client}`,
        `--listen-peer-urls=${urls.peer}`, `--initial-advertise-peer-urls=${urls.peer}`, `--initial-cluster=m=${urls.peer}`,
    ], { stdio: "ignore" });
    // It serves when it acknowledges.
    while (await put(client, "elsewhere", "x") === null) {
        if (member.exitCode !== null) throw new Error("the member has ended");
        await new Promise(resolve => setTimeout(resolve, 20));
    }
    return member;
}

const [command] = process.argv.slice(2);
const directory = mkdtempSync(join(tmpdir(), "everwatch-node-"));
const ports = [await freePort(), await freePort()];
let member, watcher;
const late = setTimeout(() => {
    console.error("FAILED: not done in time", watcher && { heard: watcher.events.length, connections: watcher.connections });
    member?.kill("SIGKILL");
    process.exit(1);
}, PATIENCE_MS);
try {
    member = await start(command, join(directory, "data"), ports);
    watcher = new Watcher(ports[0]);
    await watcher.until(() => watcher.created === 1);
    const acknowledged = [];
    for (let restart = 0; restart <= RESTARTS; restart += 1) {
        for (let n = 0; n < PUTS; n += 1) {
            const key = `${PREFIX}${restart}/${n}`;
            acknowledged.push({ key, revision: await put(ports[0], key, "value") });
        }
        if (restart === RESTARTS) break;
        member.kill("SIGKILL");
        await once(member, "exit");
        member = await start(command, join(directory, "data"), ports);
    }
    await watcher.until(() => watcher.events.length >= acknowledged.length);
    const texts = list => list.map(event => JSON.stringify(event));
    const [seen, expected] = [texts(watcher.events), texts(acknowledged)];
    const at = seen.findIndex((text, n) => text !== expected[n]);
    if (at >= 0) throw new Error(`event ${at} is ${seen[at]}, not ${expected[at]}`);
    if (watcher.created !== RESTARTS + 1) throw new Error(`created ${watcher.created} times`);
    console.log(`${watcher.events.length} events over ${RESTARTS} restarts, ${watcher.connections} connections: each once, in order`);
} catch (error) {
    console.error(`FAILED: ${error.message}`);
    process.exitCode = 1;
} finally {
    clearTimeout(late);
    watcher?.close();
    member?.kill("SIGKILL");
    rmSync(directory, { recursive: true, force: true });
}
