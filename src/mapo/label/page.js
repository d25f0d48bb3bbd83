import { pairView } from "./pair.js";
import { gridView } from "./grid.js";

const HOLD = 250; // milliseconds for which what is new takes no vote: a key pressed twice is meant for what was before
const KEYS = { ArrowDown: "tie", x: "bad", s: "skip", u: "undo", z: "zoom", b: "veil" };
const WORDS = { tie: "tie", bad: "bad", skip: "skipped" };
const $ = (id) => document.getElementById(id);
const pictures = new Map(); // hash → {img, loaded}, of the tasks that the server has told
const views = [pairView, gridView].map((make) => make({ vote, isOpen: () => !isVeiled() }));
let view = views[0];
let state = null;
let name = recall();
let shownAt = Infinity; // when all pictures of the task could be seen
let missing = false;
let busy = false;
let veiled = true;
let gaps = [];
let votedAt = null;

function recall() {
  try { return localStorage.getItem("mapo-annotator") || ""; } catch { return ""; }
}
function remember(text) {
  name = text;
  try { localStorage.setItem("mapo-annotator", text); } catch { /* asked again on the next visit */ }
}

// ---------------------------------------------------------------- the server

async function call(path, body) {
  if (busy) return false;
  busy = true;
  try {
    const how = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, how);
    const said = answer.headers.get("content-type") === "application/json" ? await answer.json() : { error: await answer.text() };
    if (answer.status === 409) { // this page was behind; what was pressed is dropped
      busy = false;
      await refresh();
      return false;
    }
    if (!answer.ok) return trouble(said.error);
    trouble("");
    accept(said);
    return true;
  } catch {
    return trouble("The server does not answer. What you voted before is kept. Start it again, then go on.");
  } finally {
    busy = false;
  }
}

const refresh = () => call("state?annotator=" + encodeURIComponent(name));

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
  return false;
}

// ---------------------------------------------------------------- what is seen

function accept(next) {
  if (next.ask) return askName();
  const before = state && state.tasks[0];
  state = next;
  view = views[state.grid ? 1 : 0];
  const task = state.tasks[0];
  for (const id of ["judge", "end", "ask"]) $(id).hidden = id !== (task ? "judge" : "end");
  for (const other of views) $(other.place).hidden = other !== view;
  $("name").textContent = state.annotator;
  $("rename").hidden = state.fixed;
  $("who").hidden = false;
  $("bar").max = state.total;
  $("bar").value = state.done;
  $("count").textContent = state.done + " of " + state.total + " judged" + speed();
  $("thanks").textContent = (state.total === 1 ? "You have judged the only " + view.noun + "." : "You have judged all " + state.total + " " + view.noun + "s.") + " Thank you.";
  for (const button of document.querySelectorAll(".undo")) {
    button.disabled = !state.last;
    button.lastElementChild.textContent = state.last ? "Undo: " + ({ ...WORDS, ...view.words })[state.last.vote] : "Undo";
  }
  load();
  if (task && !(before && before.pair === task.pair)) show(task);
}

function load() {
  const wanted = new Set(state.tasks.flatMap(view.names));
  for (const hash of pictures.keys()) if (!wanted.has(hash)) pictures.delete(hash);
  for (const hash of wanted) {
    if (pictures.has(hash)) continue;
    const img = new Image();
    img.draggable = false;
    img.src = "picture/" + hash;
    const loaded = img.decode().then(() => true, () => false);
    pictures.set(hash, { img, loaded });
  }
}

async function show(task) {
  shownAt = Infinity;
  missing = false;
  $("prompt").textContent = task.prompt;
  $("prompt").scrollTop = 0;
  view.clear();
  veil();
  const names = view.names(task);
  const there = await Promise.all(names.map((hash) => pictures.get(hash).loaded));
  if (state.tasks[0] !== task && (!state.tasks[0] || state.tasks[0].pair !== task.pair)) return; // gone on meanwhile
  const images = names.map((hash) => pictures.get(hash)?.img);
  if (!images.every(Boolean)) return;
  for (const [k, img] of images.entries()) {
    img.classList.toggle("tiny", img.naturalWidth > 0 && img.naturalWidth <= 128);
    img.classList.toggle("missing", !there[k]);
  }
  view.show(names, images);
  veil();
  missing = !there.every(Boolean);
  if (missing) {
    for (const hash of names) pictures.delete(hash); // tried again when shown again
    trouble("A picture of this " + view.noun + " cannot be shown. Skip the " + view.noun + ", or load the page again.");
  }
  requestAnimationFrame(() => { shownAt = performance.now(); });
}

const isVeiled = () => Boolean(state && state.sensitive && veiled);

function veil() {
  document.body.classList.toggle("veiled", isVeiled());
  for (const button of document.querySelectorAll("[data-does=veil]")) button.hidden = !state.sensitive;
  $("veil").textContent = isVeiled() ? "Show" : "Blur";
  for (const button of document.querySelectorAll("#judge button"))
    if (!["skip", "veil", "undo"].includes(button.dataset.does)) button.disabled = isVeiled();
}

function speed() {
  if (gaps.length < 5) return "";
  const middle = gaps.slice(-20).sort((a, b) => a - b)[Math.floor(Math.min(gaps.length, 20) / 2)];
  return " · " + Math.max(1, Math.round(60000 / middle)) + "/min";
}

function askName() {
  for (const id of ["judge", "end"]) $(id).hidden = true;
  $("ask").hidden = false;
  $("who").hidden = true;
  $("count").textContent = "";
  $("bar").value = 0;
  $("annotator").value = name;
  $("annotator").focus();
}

// ---------------------------------------------------------------- what is done

async function vote(choice, more = {}) {
  const task = state.tasks[0];
  const seen = performance.now() - shownAt >= HOLD;
  if (!task || !seen || busy || ((isVeiled() || missing) && choice !== "skip")) return false;
  const now = performance.now();
  if (!(await call("vote", { annotator: name, pair: task.pair, vote: choice, ...more }))) return false;
  if (votedAt !== null) gaps.push(now - votedAt);
  votedAt = now;
  return true;
}

async function undo() {
  if (!state.last || busy) return;
  votedAt = null; // going back is not a measure of speed
  await call("undo", { annotator: name, pair: state.last.pair });
}

function act(does) {
  if (!state || !$("ask").hidden) return;
  if (does === "undo") undo();
  else if ($("judge").hidden) return;
  else if (does === "veil") { if (state.sensitive) { veiled = !veiled; view.close(); veil(); } }
  else if (isVeiled() && does !== "skip") return;
  else if (!view.act(does)) vote(does);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const does = view.keys()[key] || KEYS[key];
  if (!does) return;
  event.preventDefault();
  if (!event.repeat) act(does);
});

for (const button of document.querySelectorAll("[data-does]"))
  button.addEventListener("click", () => act(button.dataset.does));

$("rename").addEventListener("click", askName);
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const before = name;
  const text = $("annotator").value.trim();
  if (!text) return;
  state = null;
  gaps = [];
  votedAt = null;
  name = text;
  if (await refresh()) remember(text);
  else name = before;
});

if (location.search) history.replaceState(null, "", location.pathname); // the token is in a cookie by now
refresh();
