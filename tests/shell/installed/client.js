// The same app as client.py in another language: it speaks the protocol and knows nothing of ours.
const net = require("net");
const readline = require("readline");

const socket = new net.Socket({ fd: Number(process.env.LLMASOS_FD), readable: true, writable: true });
const waiting = new Map();
let number = 0;
const say = (message) => socket.write(JSON.stringify(message) + "\n");
const call = (name, args = {}) =>
  new Promise((resolve, reject) => {
    const id = String(number++);
    waiting.set(id, { resolve, reject });
    say({ kind: "call", id, name, args });
  });

async function main(params) {
  const context = await call("ctx.open");
  await call("ctx.append", { context, text: params.prompt });
  const reply = await call("llm.generate", { context, max_tokens: 6 });
  await call("io.write", { text: `${reply.finish} ${reply.text}\n` });
  try {
    await call("ctx.info", { context: 99 });
  } catch (error) {
    await call("io.write", { text: `${error.code}\n` });
  }
  say({ kind: "exit", code: 5 });
}

readline.createInterface({ input: socket }).on("line", (line) => {
  const message = JSON.parse(line);
  if (message.kind === "start") return main(message.params);
  const { resolve, reject } = waiting.get(message.id);
  if (message.kind === "done") resolve(message.result);
  if (message.kind === "fail") reject(message);
});
say({ kind: "hello", protocol: 1, token: process.env.LLMASOS_TOKEN });
