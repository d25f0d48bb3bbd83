// Two pictures side by side, of which one is better; they are zoomed at the same place.
const $ = (id) => document.getElementById(id);

export function pairView({ isOpen }) {
  const sides = ["left", "right"];
  const frames = sides.map((side) => $(side).querySelector(".frame"));
  const isZoomed = () => document.body.classList.contains("zoomed");

  function zoom(at) { // at: {x, y} as shares of the frame, or null
    document.body.classList.toggle("zoomed", Boolean(at));
    document.querySelector("[data-does=zoom]").setAttribute("aria-pressed", String(Boolean(at)));
    for (const frame of frames) {
      const img = frame.firstElementChild;
      if (!img) continue;
      const fitted = Math.min(frame.clientWidth / img.naturalWidth, frame.clientHeight / img.naturalHeight) || 1;
      img.style.transformOrigin = at ? 100 * at.x + "% " + 100 * at.y + "%" : "";
      img.style.transform = at ? "scale(" + Math.max(2.5, 1 / fitted) + ")" : "";
    }
  }

  const place = (event, frame) => {
    const box = frame.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, value));
    return { x: share((event.clientX - box.left) / box.width), y: share((event.clientY - box.top) / box.height) };
  };
  for (const frame of frames) {
    let from = null; // a drag moves the zoomed pictures, a click begins or ends the zoom
    frame.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
    frame.addEventListener("pointermove", (event) => { if (isZoomed()) zoom(place(event, frame)); });
    frame.addEventListener("pointerup", (event) => {
      const still = from && Math.hypot(event.clientX - from[0], event.clientY - from[1]) < 8;
      from = null;
      if (still && isOpen()) zoom(isZoomed() ? null : place(event, frame));
    });
  }

  return {
    place: "pictures",
    noun: "pair",
    words: { left: "left", right: "right", bad: "both bad" },
    keys: () => ({ ArrowLeft: "left", ArrowRight: "right", Escape: "close" }),
    names: (task) => [task.left, task.right],
    clear() {
      zoom(null);
      for (const frame of frames) frame.replaceChildren();
    },
    show(names, images) {
      for (const [k, img] of images.entries()) {
        img.alt = "the picture on the " + sides[k];
        frames[k].replaceChildren(img);
      }
    },
    close: () => zoom(null),
    act(does) { // whether that was it
      if (does === "zoom") zoom(isZoomed() ? null : { x: 0.5, y: 0.5 });
      else if (does === "close") zoom(null);
      else return false;
      return true;
    },
  };
}
