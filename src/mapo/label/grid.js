// All pictures of a prompt at once: the best is picked, then the worst. One of them can be looked at in full size.
const $ = (id) => document.getElementById(id);
const GAP = 8; // pixels between the pictures

export function gridView({ vote, isOpen }) {
  const grid = $("tiles");
  let tiles = [];
  let names = [];
  let best = null; // places in the grid
  let worst = null;
  let near = null; // the place of the picture that is seen in full size

  function mark() {
    for (const [k, tile] of tiles.entries()) {
      tile.classList.toggle("best", k === best);
      tile.classList.toggle("worst", k === worst);
      tile.querySelector(".mark").textContent = k === best ? "Best" : k === worst ? "Worst" : "";
      tile.querySelector(".pick").setAttribute("aria-pressed", String(k === best || k === worst));
    }
    const better = names.length === 2 ? "better" : "the best";
    $("ask-which").textContent = best === null ? "Which is " + better + "?" : "And which is the worst?";
    $("near-pick").textContent = near !== null && near === best ? "Not the best" : best === null ? "This is " + better : "This is the worst";
  }

  async function pick(k) {
    if (k >= names.length || !isOpen()) return;
    if (best === null && names.length > 2) best = k;
    else if (k === best) best = null;
    else if (best === null) [best, worst] = [k, 1 - k];
    else worst = k;
    mark();
    if (worst === null) return;
    close();
    if (!(await vote("picked", { best: names[best], worst: names[worst] }))) {
      worst = null; // not kept: the best stays picked
      if (names.length === 2) best = null;
      mark();
    }
  }

  function lookAt(k) {
    near = (k + names.length) % names.length;
    const img = tiles[near].querySelector("img");
    const full = img.cloneNode();
    $("near-frame").replaceChildren(full);
    $("near-number").textContent = near + 1 + " of " + names.length;
    $("near").hidden = false;
    $("near-pick").focus(); // Enter picks it
    mark();
  }

  function close() {
    near = null;
    $("near").hidden = true;
    $("near-frame").replaceChildren();
  }

  function tile(img, k) {
    const pickButton = document.createElement("button");
    pickButton.type = "button";
    pickButton.className = "pick frame";
    img.alt = "picture " + (k + 1);
    pickButton.append(img);
    pickButton.addEventListener("click", () => pick(k));
    const number = document.createElement("kbd");
    number.textContent = String(k + 1);
    const said = document.createElement("span");
    said.className = "mark";
    const closer = document.createElement("button");
    closer.type = "button";
    closer.className = "closer";
    closer.textContent = "⤢";
    closer.setAttribute("aria-label", "Look at picture " + (k + 1) + " in full size");
    closer.addEventListener("click", () => lookAt(k));
    const whole = document.createElement("figure");
    whole.className = "tile";
    whole.append(pickButton, number, said, closer);
    return whole;
  }

  function arrange() { // in as many columns as make the pictures largest
    if (!tiles.length) return;
    const img = tiles[0].querySelector("img");
    const shape = img.naturalWidth / img.naturalHeight || 1;
    const columns = tiles.map((_, k) => k + 1);
    const width = (c) => {
      const rows = Math.ceil(tiles.length / c);
      const high = (grid.clientHeight - GAP * (rows - 1)) / rows;
      return Math.min((grid.clientWidth - GAP * (c - 1)) / c, high * shape);
    };
    const most = columns.reduce((one, other) => (width(other) > width(one) + 0.5 ? other : one));
    grid.style.gridTemplateColumns = "repeat(" + most + ", " + Math.max(1, Math.floor(width(most))) + "px)";
    grid.style.gridAutoRows = Math.max(1, Math.floor(width(most) / shape)) + "px";
  }
  new ResizeObserver(arrange).observe(grid);

  const near_does = {
    "near-before": () => lookAt(near - 1), "near-after": () => lookAt(near + 1),
    "near-pick": () => pick(near), "near-close": close, "near-frame": close,
  };
  for (const [id, does] of Object.entries(near_does)) $(id).addEventListener("click", does);

  return {
    place: "grid",
    noun: "grid",
    words: { left: "best and worst", bad: "all bad" },
    keys() {
      const digits = Object.fromEntries(names.map((_, k) => [String(k + 1), "pick " + k]));
      const moves = near === null ? {} : { ArrowLeft: "before", ArrowRight: "after" };
      return { ...digits, ...moves, Escape: "close" };
    },
    names: (task) => task.pictures,
    clear() {
      close();
      [best, worst, tiles, names] = [null, null, [], []];
      grid.replaceChildren();
    },
    show(shown, images) {
      names = shown;
      tiles = images.map(tile);
      grid.replaceChildren(...tiles);
      arrange();
      mark();
    },
    close,
    act(does) { // whether that was it
      if (does.startsWith("pick ")) pick(Number(does.slice(5)));
      else if (does === "before" || does === "after") lookAt(near + (does === "after" ? 1 : -1));
      else if (does === "zoom") near === null ? lookAt(best ?? 0) : close();
      else if (does === "close" && near !== null) close();
      else if (does === "close") { best = null; mark(); }
      else return false;
      return true;
    },
  };
}
