// A talk, its speed, and the KV pool. What the model says goes into the page as text only: textContent and append.

const POLL_MS = 250;
const ROWS = 4; // bands of the KV map
const MAX_BLOCKS_PER_ROW = 256;
const LOAD_PROMPT = "Write a long report about the sea, chapter by chapter.";
const byId = (id) => document.getElementById(id);
const style = getComputedStyle(document.documentElement);
const COLORS = Object.fromEntries(["rt", "be", "taken", "free"].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));

const talk = []; // messages so far, as the API takes them
let open = null; // AbortController of the answer that is coming

const headers = () => {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

// --- the API

async function errorOf(response) {
  const body = await response.json().catch(() => ({}));
  return new Error(body.error?.message ?? `HTTP ${response.status}`);
}

async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

async function* chat(messages, options, signal) {
  const body = JSON.stringify({ messages, stream: true, ...options });
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal });
  if (!response.ok) throw await errorOf(response);
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    yield event;
  }
}

// --- the talk

function addMessage(kind, text) {
  const message = document.createElement("p");
  message.className = `message ${kind}`;
  message.textContent = text;
  byId("messages").append(message);
  scrollSoon();
  return message;
}

let isScrolling = false;

function scrollSoon() {
  if (isScrolling) return;
  isScrolling = true;
  requestAnimationFrame(() => {
    isScrolling = false;
    byId("messages").scrollTop = byId("messages").scrollHeight;
  });
}

function showSpeed(startedMs, firstMs, numTokens) {
  byId("ttft").textContent = firstMs === null ? "…" : `${Math.round(firstMs - startedMs)} ms`;
  const seconds = (performance.now() - (firstMs ?? startedMs)) / 1000;
  byId("rate").textContent = numTokens > 1 && seconds > 0 ? ((numTokens - 1) / seconds).toFixed(1) : "–";
}

async function answer(tier) {
  const shown = addMessage(tier, "");
  const startedMs = performance.now();
  let firstMs = null;
  const options = { service_tier: tier, max_completion_tokens: 512, stream_options: { include_usage: true, continuous_usage_stats: true } };
  showSpeed(startedMs, firstMs, 0);
  for await (const event of chat(talk, options, open.signal)) {
    const numTokens = event.usage?.completion_tokens ?? 0;
    if (numTokens > 0) firstMs ??= performance.now();
    if (event.choices.length > 0) {
      shown.append(event.choices[0].delta.content ?? "");
      showSpeed(startedMs, firstMs, numTokens);
      scrollSoon();
    }
  }
  return shown.textContent;
}

function setOpen(controller) {
  open = controller;
  byId("send").disabled = controller !== null;
  byId("stop").disabled = controller === null;
}

async function send(event) {
  event.preventDefault();
  const prompt = byId("prompt").value.trim();
  if (open !== null || prompt === "") return;
  const length = talk.length;
  addMessage("user", prompt);
  talk.push({ role: "user", content: prompt });
  byId("prompt").value = "";
  setOpen(new AbortController());
  try {
    talk.push({ role: "assistant", content: await answer(new FormData(byId("ask")).get("tier")) });
  } catch (error) {
    talk.length = length;
    if (error.name !== "AbortError") addMessage("error", error.message);
  } finally {
    setOpen(null);
  }
}

// --- best-effort load, as one request of so many choices

let load = null;

async function setLoad(num) {
  byId("load-now").textContent = num;
  load?.abort();
  load = num > 0 ? new AbortController() : null;
  const { signal } = load ?? {};
  const options = { service_tier: "flex", n: num, max_completion_tokens: 512, temperature: 1 };
  try {
    while (signal && !signal.aborted) {
      for await (const _ of chat([{ role: "user", content: LOAD_PROMPT }], options, signal));
    }
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("trouble").textContent = error.message;
    byId("load").value = 0;
    byId("load-now").textContent = 0;
  }
}

// --- the engine

const bytesOf = (text) => Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
let before = null; // what was drawn last: view, time, fills

function drawPool(rt, be, blockSize) {
  const canvas = byId("kv");
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(canvas.clientWidth * scale);
  canvas.height = Math.round(canvas.clientHeight * scale);
  const context = canvas.getContext("2d");
  const perColumn = Math.max(1, Math.ceil(rt.length / (ROWS * MAX_BLOCKS_PER_ROW)));
  const numColumns = Math.ceil(rt.length / perColumn);
  const numRows = Math.min(ROWS, Math.max(1, Math.ceil(numColumns / 32)));
  const perRow = Math.ceil(numColumns / numRows);
  const [width, height] = [canvas.width / perRow, canvas.height / numRows];
  const isComparable = before?.rt.length === rt.length;
  for (let column = 0; column < numColumns; column++) {
    const part = [column * perColumn, (column + 1) * perColumn];
    const sum = (fill) => fill.slice(...part).reduce((total, slots) => total + slots, 0);
    const slots = blockSize * rt.slice(...part).length;
    const isTaken = isComparable && sum(rt) > sum(before.rt) && sum(be) < sum(before.be);
    const [x, y] = [(column % perRow) * width, Math.floor(column / perRow) * height];
    const [inner, tall] = [Math.max(1, width - scale), height - 4 * scale];
    const fill = (color, top, bottom) => { context.fillStyle = color; context.fillRect(x, y + top * tall, inner, (bottom - top) * tall); };
    fill(COLORS.free, 0, 1);
    fill(COLORS.be, 0, sum(be) / slots);
    fill(isTaken ? COLORS.taken : COLORS.rt, 1 - sum(rt) / slots, 1);
  }
}

function showView(view) {
  const nowMs = performance.now();
  const [rt, be] = [bytesOf(view.kv.head_fill), bytesOf(view.kv.tail_fill)];
  drawPool(rt, be, view.kv.block_size);
  for (const [name, counts] of Object.entries(view.requests_by_class)) {
    for (const state of ["running", "waiting", "preempted"]) byId(`${name}-${state}`).textContent = counts[`num_${state}`];
    const num = before && view.total_step_tokens[name] - before.view.total_step_tokens[name];
    if (num !== null) byId(`${name}-rate`).textContent = Math.max(0, (num * 1000) / (nowMs - before.nowMs)).toFixed(0);
  }
  before = { view, nowMs, rt, be };
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      try {
        const response = await fetch("/snapshot", { headers: headers() });
        if (!response.ok) throw await errorOf(response);
        showView(await response.json());
        byId("trouble").textContent = "";
      } catch (error) {
        byId("trouble").textContent = `no view of the engine: ${error.message}`;
      }
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

byId("ask").addEventListener("submit", send);
byId("stop").addEventListener("click", () => open?.abort());
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
});
byId("load").addEventListener("change", (event) => setLoad(Number(event.target.value)));
byId("load").addEventListener("input", (event) => { byId("load-now").textContent = event.target.value; });
watch();
