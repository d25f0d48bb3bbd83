"use strict";
(() => {
  const OFTEN = 2000, SELDOM = 15000; // milliseconds between two looks, while the run goes on and when it does not
  const SHOWN = 8; // pictures of a prompt, spread over the steps, until all are asked for
  const WIDTH = 320, HEIGHT = 165, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 22;
  const $ = (id) => document.getElementById(id);
  let veiled = true, all = false, drawn = "", state = null;

  const make = (tag, attributes = {}, ...inner) => {
    const element = tag in { svg: 1, path: 1, line: 1, text: 1, circle: 1 } ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...inner);
    return element;
  };

  // ---------------------------------------------------------------- numbers as people read them

  const minus = (text) => text.replace("-", "−");
  const plain = (value) => value === 0 ? "0" : minus(Math.abs(value) < 1e-3 ? value.toExponential(1).replace(".0e", "e").replace("e-", "e−") : String(Number(value.toPrecision(3))));
  const percent = (value) => minus(String(Number((100 * value).toPrecision(3)))) + "\u202f%";
  const signed = (value) => (value > 0 ? "+" : "") + percent(value);
  const thousands = (value) => value >= 10000 && value % 100 === 0 ? value / 1000 + "k" : String(value);
  function duration(seconds) {
    if (seconds < 60) return Math.max(0, Math.round(seconds)) + " s";
    if (seconds < 3600) return Math.round(seconds / 60) + " min";
    if (seconds < 48 * 3600) return Math.floor(seconds / 3600) + " h " + Math.round(seconds % 3600 / 60) + " min";
    return Math.round(seconds / 86400) + " days";
  }

  // ---------------------------------------------------------------- a curve

  function ticks(low, high, most) {
    const rough = (high - low) / most || 1;
    const size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((k) => k * size).find((k) => k >= rough * 0.999);
    const found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k++) found.push(Number((k * step).toPrecision(10)));
    return found;
  }

  function chart(curve) {
    const points = curve.lines.flatMap((line) => line.points);
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    if (curve.even !== undefined) ys.push(curve.even);
    const [first, last] = [Math.min(...xs), Math.max(...xs)];
    let [low, high] = [Math.min(...ys), Math.max(...ys)];
    const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.01;
    low = curve.even === undefined && low >= 0 ? 0 : low - room;
    high += room;
    const x = (value) => LEFT + (last > first ? (value - first) / (last - first) : 0.5) * (WIDTH - LEFT - RIGHT);
    const y = (value) => TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM);
    const told = curve.signed ? signed : curve.share ? percent : plain;
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": curve.title + ": " + said(curve, told) });
    for (const tick of ticks(low, high, 4)) {
      svg.append(make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(tick), y2: y(tick) }));
      svg.append(make("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, told(tick)));
    }
    if (curve.even !== undefined) svg.append(make("line", { class: "even", x1: LEFT, x2: WIDTH - RIGHT, y1: y(curve.even), y2: y(curve.even) }));
    for (const tick of ticks(first, last, 5).filter(Number.isInteger))
      svg.append(make("text", { x: x(tick), y: HEIGHT - 5, "text-anchor": x(tick) > WIDTH - RIGHT - 12 ? "end" : "middle" }, thousands(tick)));
    for (const line of curve.lines) {
      const path = line.points.map((p, k) => (k ? "L" : "M") + x(p[0]).toFixed(1) + " " + y(p[1]).toFixed(1)).join("");
      svg.append(make("path", { class: line.tone + (line.tone === "rejected" ? " dashed" : ""), d: path }));
      const dots = curve.marked && line.points.length <= 60 || line.points.length === 1 ? line.points : [];
      for (const p of dots) svg.append(make("circle", { class: line.tone, cx: x(p[0]), cy: y(p[1]), r: 2.4 }));
    }
    const key = make("div", { class: "key" }, ...curve.lines.filter((line) => line.label).map((line) => make("span", { class: line.tone }, line.label)));
    return make("figure", {}, make("figcaption", {}, make("strong", {}, curve.title), curve.note + " " + said(curve, told)), key, svg);
  }

  function said(curve, told) {
    if (curve.lines.length > 2) return ""; // the lines themselves are easier to read
    const ends = curve.lines.filter((line) => line.points.length).map((line) => (line.label ? line.label + "\u00a0" : "") + told(line.points.at(-1)[1]));
    return ends.length ? "Now " + ends.join(", ") + "." : "";
  }

  // ---------------------------------------------------------------- the page

  function show() {
    $("name").textContent = state.name;
    document.title = state.name + " · " + state.step + " of " + state.steps;
    $("status").textContent = state.status;
    $("status").className = "pill " + state.status;
    $("bar").max = state.steps;
    $("bar").value = state.step;
    $("about").replaceChildren(...state.about.map(([name, value]) => make("span", {}, name + " ", make("b", {}, value))));
    const figures = [["step", state.step.toLocaleString("en") + " of " + state.steps.toLocaleString("en")]];
    if (state.pairs_per_second !== null) figures.push(["pairs a second", plain(state.pairs_per_second)]);
    if (state.status === "running" && state.seconds_left !== null) figures.push(["left, about", duration(state.seconds_left)]);
    if (state.memory) figures.push(["most memory", (state.memory / 2 ** 30).toFixed(1) + " GiB"]);
    if (state.seconds_since !== null) figures.push(["last step", duration(state.seconds_since) + " ago"]);
    if (state.best !== null) figures.push(["best so far", "step " + state.best]);
    $("figures").replaceChildren(...figures.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    $("alarms").hidden = !state.alarms.length;
    $("alarms").replaceChildren(...state.alarms.map((alarm) => make("p", {}, make("b", {}, "At step " + alarm.step + ":"), " " + alarm.says)));
    $("missing").hidden = !state.missing.length;
    $("missing").textContent = state.missing.join(" ");
    $("waiting").hidden = state.step > 0 || state.curves.length > 0;
    for (const [id, wanted] of [["held", true], ["trained", false]]) {
      const curves = state.curves.filter((curve) => Boolean(curve.held) === wanted && curve.lines.some((line) => line.points.length));
      $(id).hidden = !curves.length;
      $(id).querySelector(".curves").replaceChildren(...curves.map(chart));
    }
    strip();
  }

  function strip() {
    const { steps, prompts } = state.pictures;
    $("strip").hidden = !steps.length;
    const on = state.sensitive && veiled;
    document.body.classList.toggle("veiled", on);
    $("veil").hidden = !state.sensitive;
    $("veil").textContent = on ? "Show pictures" : "Blur pictures";
    const places = all || steps.length <= SHOWN ? steps.map((_, k) => k) : Array.from({ length: SHOWN }, (_, k) => Math.round(k * (steps.length - 1) / (SHOWN - 1)));
    $("all").hidden = steps.length <= SHOWN;
    $("all").textContent = all ? "Show fewer steps" : "Show all " + steps.length + " steps";
    const now = JSON.stringify([places, prompts]);
    if (now === drawn) return; // so that nothing flickers
    drawn = now;
    $("pictures").replaceChildren(...prompts.map(({ prompt, pictures }) => {
      const row = make("div", { class: "row" });
      for (const k of places) {
        const picture = pictures[k], label = "step " + steps[k];
        if (!picture) { row.append(make("div", {}, make("div", { class: "none" }))); continue; }
        const image = make("img", { src: picture.from, alt: prompt + ", " + label, loading: "lazy", width: picture.width, height: picture.height });
        if (picture.width <= 128) image.className = "tiny";
        image.style.setProperty("--ratio", picture.width + " / " + picture.height);
        const button = make("button", { type: "button" }, image, label);
        button.addEventListener("click", () => enlarge(image, prompt, label));
        row.append(button);
      }
      return make("div", { class: "prompt" }, make("p", {}, prompt), row);
    }));
  }

  function enlarge(image, prompt, label) {
    $("shown").src = image.src;
    $("shown").alt = image.alt;
    $("shown").className = image.className;
    $("caption").textContent = prompt + " · " + label;
    $("large").showModal();
  }

  $("veil").addEventListener("click", () => { veiled = !veiled; strip(); });
  $("all").addEventListener("click", () => { all = !all; strip(); });
  $("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });

  async function look() {
    let wait = OFTEN;
    try {
      const answer = await fetch("state");
      const said = answer.headers.get("content-type") === "application/json" ? await answer.json() : { error: await answer.text() };
      $("trouble").hidden = answer.ok;
      if (answer.ok) {
        state = said;
        show();
        wait = state.status === "running" || state.status === "starting" ? OFTEN : SELDOM;
      } else $("trouble").textContent = said.error;
    } catch {
      $("trouble").textContent = "The page's server does not answer. The training does not depend on it; start `mapo watch` again.";
      $("trouble").hidden = false;
    }
    setTimeout(look, wait);
  }

  if (location.search) history.replaceState(null, "", location.pathname); // the token is in a cookie by now
  look();
})();
