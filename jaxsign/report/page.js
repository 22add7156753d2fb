// Chooses and enlarges figures (wheel, pinch, drag, keys), and copies commands. Without it the page shows the same, only smaller.
"use strict";
(() => {
  document.documentElement.classList.add("js");
  const dialog = document.getElementById("zoom");
  const stage = dialog.querySelector(".stage");
  const fingers = new Map();
  let shown = null; // {node, home, scale, x, y}

  const place = () => {
    shown.node.style.transform = `translate(${shown.x}px, ${shown.y}px) scale(${shown.scale})`;
  };

  // The point (x, y) of the stage stays where it is.
  const zoom = (factor, x, y) => {
    const scale = Math.min(40, Math.max(1, shown.scale * factor));
    const ratio = scale / shown.scale;
    shown.x = scale === 1 ? 0 : x - (x - shown.x) * ratio;
    shown.y = scale === 1 ? 0 : y - (y - shown.y) * ratio;
    shown.scale = scale;
    place();
  };
  const zoomMiddle = (factor) => zoom(factor, stage.clientWidth / 2, stage.clientHeight / 2);
  const move = (x, y) => {
    shown.x += x;
    shown.y += y;
    place();
  };
  const reset = () => {
    Object.assign(shown, { scale: 1, x: 0, y: 0 });
    place();
  };

  const open = (drawing) => {
    const node = drawing.firstElementChild;
    drawing.style.height = `${drawing.offsetHeight}px`; // the page does not move while its figure is away
    const words = [...drawing.parentElement.querySelector("figcaption").childNodes].map((node) => node.textContent.trim());
    dialog.querySelector(".caption").textContent = words.filter(Boolean).join(" · ");
    shown = { node, home: drawing };
    stage.append(node);
    reset();
    dialog.showModal();
  };
  dialog.addEventListener("close", () => {
    shown.node.style.transform = "";
    shown.home.prepend(shown.node);
    shown.home.style.height = "";
    shown.home.focus();
    shown = null;
    fingers.clear();
  });

  // A page that is read again keeps the reader's choices, where the browser lets a local file do so.
  const recall = (name) => {
    try { return sessionStorage.getItem(name); } catch { return null; }
  };
  const remember = (name, value) => {
    try { sessionStorage.setItem(name, value); } catch { /* then they begin anew */ }
  };

  // Of a group's figures those of one point of the axes are shown, which the reader chooses; all of them on paper.
  for (const panels of document.querySelectorAll(".panels")) {
    const figures = [...panels.querySelectorAll("figure[data-choice]")];
    const choices = [...new Set(figures.map((figure) => figure.dataset.choice))];
    if (choices.length < 2) continue;
    const select = document.createElement("select");
    choices.forEach((choice) => select.add(new Option(choice)));
    const label = document.createElement("label");
    label.className = "choose";
    label.append("Runs of ", select);
    const name = `${panels.closest("section").id} ${panels.parentElement.querySelector("summary").textContent}`;
    const show = () => {
      figures.forEach((figure) => figure.classList.toggle("other", figure.dataset.choice !== select.value));
      remember(name, select.value);
    };
    select.addEventListener("change", show);
    panels.before(label);
    if (choices.includes(recall(name))) select.value = recall(name);
    show();
  }

  for (const drawing of document.querySelectorAll(".drawing")) {
    const name = drawing.getAttribute("aria-label") || drawing.firstElementChild.alt;
    drawing.tabIndex = 0;
    drawing.setAttribute("role", "button");
    drawing.setAttribute("aria-label", `Enlarge: ${name}`);
    drawing.addEventListener("click", () => open(drawing));
    drawing.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open(drawing);
      }
    });
  }

  const spread = () => {
    const [a, b] = [...fingers.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, size: Math.hypot(a.x - b.x, a.y - b.y) || 1 };
  };
  stage.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    stage.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    if (fingers.size === 2) {
      const old = spread();
      fingers.set(event.pointerId, now);
      const young = spread();
      move(young.x - old.x, young.y - old.y);
      zoom(young.size / old.size, young.x, young.y);
    } else {
      fingers.set(event.pointerId, now);
      move(now.x - before.x, now.y - before.y);
    }
  });
  for (const end of ["pointerup", "pointercancel"]) {
    stage.addEventListener(end, (event) => fingers.delete(event.pointerId));
  }
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("dblclick", (event) => zoom(2, event.clientX, event.clientY));

  const actions = { in: () => zoomMiddle(1.5), out: () => zoomMiddle(1 / 1.5), reset, close: () => dialog.close() };
  for (const button of dialog.querySelectorAll("button")) {
    button.addEventListener("click", actions[button.dataset.zoom]);
  }
  const keys = {
    "+": actions.in, "=": actions.in, "-": actions.out, 0: reset,
    ArrowLeft: () => move(60, 0), ArrowRight: () => move(-60, 0), ArrowUp: () => move(0, 60), ArrowDown: () => move(0, -60),
  };
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || !keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  // A page that is not written any more says so: whoever wrote it may have been killed.
  for (const words of document.querySelectorAll("[data-now]")) {
    const written = Date.parse(words.dataset.now.replace(" UTC", "Z").replace(" ", "T"));
    if (Date.now() - written > 1000 * (60 + 3 * words.dataset.seconds)) {
      words.textContent = `As of ${words.dataset.now}, and not written since: jaxsign report --watch has ended.`;
    }
  }

  for (const button of document.querySelectorAll(".copy")) {
    const code = button.previousElementSibling;
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(code); // where the clipboard is refused, the reader's own copy takes it
      let done = "Selected";
      try {
        await navigator.clipboard.writeText(code.textContent);
        done = "Copied";
      } catch { /* selected */ }
      button.textContent = done;
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
