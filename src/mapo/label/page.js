"use strict";
(() => {
  const HOLD = 250; // milliseconds for which a new pair takes no vote: a key pressed twice is meant for the pair before
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", x: "bad", s: "skip", u: "undo", z: "zoom", b: "veil" };
  const WORDS = { left: "left", right: "right", tie: "tie", bad: "both bad", skip: "skipped" };
  const $ = (id) => document.getElementById(id);
  const frames = { left: $("left").querySelector(".frame"), right: $("right").querySelector(".frame") };
  const pictures = new Map(); // hash → {img, loaded}, of the pairs that the server has told
  let state = null;
  let name = recall();
  let shownAt = Infinity; // when both pictures of the pair could be seen
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
    const task = state.tasks[0];
    for (const id of ["judge", "end", "ask"]) $(id).hidden = id !== (task ? "judge" : "end");
    $("name").textContent = state.annotator;
    $("rename").hidden = state.fixed;
    $("who").hidden = false;
    $("bar").max = state.total;
    $("bar").value = state.done;
    $("count").textContent = state.done + " of " + state.total + " judged" + speed();
    $("thanks").textContent = (state.total === 1 ? "You have judged the only pair." : "You have judged all " + state.total + " pairs.") + " Thank you.";
    for (const button of document.querySelectorAll(".undo")) {
      button.disabled = !state.last;
      button.lastElementChild.textContent = state.last ? "Undo: " + WORDS[state.last.vote] : "Undo";
    }
    load();
    if (task && !(before && before.pair === task.pair)) show(task);
  }

  function load() {
    const wanted = new Set(state.tasks.flatMap((task) => [task.left, task.right]));
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
    zoom(null);
    $("prompt").textContent = task.prompt;
    $("prompt").scrollTop = 0;
    const sides = ["left", "right"];
    for (const side of sides) frames[side].replaceChildren();
    veil();
    const there = await Promise.all(sides.map((side) => pictures.get(task[side]).loaded));
    if (state.tasks[0] !== task && (!state.tasks[0] || state.tasks[0].pair !== task.pair)) return; // gone on meanwhile
    for (const side of sides) {
      const { img } = pictures.get(task[side]) || {};
      if (!img) continue;
      img.alt = "the picture on the " + side;
      img.classList.toggle("tiny", img.naturalWidth > 0 && img.naturalWidth <= 128);
      frames[side].replaceChildren(img);
    }
    missing = !there.every(Boolean);
    for (const [k, side] of sides.entries()) frames[side].firstChild.classList.toggle("missing", !there[k]);
    if (missing) {
      for (const side of sides) if (pictures.get(task[side])) pictures.delete(task[side]); // tried again when shown again
      trouble("A picture of this pair cannot be shown. Skip the pair, or load the page again.");
    }
    requestAnimationFrame(() => { shownAt = performance.now(); });
  }

  function veil() {
    const on = state.sensitive && veiled;
    document.body.classList.toggle("veiled", on);
    for (const button of document.querySelectorAll("[data-does=veil]")) button.hidden = !state.sensitive;
    $("veil").textContent = on ? "Show" : "Blur";
    for (const does of ["left", "right", "tie", "bad", "zoom"])
      for (const button of document.querySelectorAll("[data-does=" + does + "]")) button.disabled = on;
  }

  function zoom(at) { // at: {x, y} as shares of the frame, or null
    document.body.classList.toggle("zoomed", Boolean(at));
    document.querySelector("[data-does=zoom]").setAttribute("aria-pressed", String(Boolean(at)));
    for (const frame of Object.values(frames)) {
      const img = frame.firstElementChild;
      if (!img) continue;
      const fitted = Math.min(frame.clientWidth / img.naturalWidth, frame.clientHeight / img.naturalHeight) || 1;
      img.style.transformOrigin = at ? 100 * at.x + "% " + 100 * at.y + "%" : "";
      img.style.transform = at ? "scale(" + Math.max(2.5, 1 / fitted) + ")" : "";
    }
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

  async function vote(choice) {
    const task = state.tasks[0];
    const seen = performance.now() - shownAt >= HOLD;
    const hidden = state.sensitive && veiled;
    if (!task || !seen || busy || ((hidden || missing) && choice !== "skip")) return;
    const now = performance.now();
    if (!(await call("vote", { annotator: name, pair: task.pair, vote: choice }))) return;
    if (votedAt !== null) gaps.push(now - votedAt);
    votedAt = now;
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
    else if (does === "veil") { if (state.sensitive) { veiled = !veiled; zoom(null); veil(); } }
    else if (does === "zoom") { if (!document.body.classList.contains("veiled")) zoom(document.body.classList.contains("zoomed") ? null : { x: 0.5, y: 0.5 }); }
    else vote(does);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    if (event.key === "Escape") return zoom(null);
    const does = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!does) return;
    event.preventDefault();
    if (!event.repeat) act(does);
  });

  for (const button of document.querySelectorAll("[data-does]"))
    button.addEventListener("click", () => act(button.dataset.does));

  const place = (event, frame) => {
    const box = frame.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, value));
    return { x: share((event.clientX - box.left) / box.width), y: share((event.clientY - box.top) / box.height) };
  };
  for (const frame of Object.values(frames)) {
    let from = null; // a drag moves the zoomed pictures, a click begins or ends the zoom
    frame.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
    frame.addEventListener("pointermove", (event) => {
      if (document.body.classList.contains("zoomed")) zoom(place(event, frame));
    });
    frame.addEventListener("pointerup", (event) => {
      const still = from && Math.hypot(event.clientX - from[0], event.clientY - from[1]) < 8;
      from = null;
      if (!still || document.body.classList.contains("veiled")) return;
      zoom(document.body.classList.contains("zoomed") ? null : place(event, frame));
    });
  }

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
})();
