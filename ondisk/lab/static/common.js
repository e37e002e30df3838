// What the browser parts share. It is put before each of them: there is no build step, and no import.

const SVG = "http://www.w3.org/2000/svg";

function make(tag, className = "", parent = null) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  parent?.append(made);
  return made;
}

function draw(tag, className, parent) {
  const made = document.createElementNS(SVG, tag);
  made.setAttribute("class", className);
  parent.append(made);
  return made;
}

function say(element, text) {
  text = String(text);
  if (element.textContent !== text) element.textContent = text;
}

function set(element, name, value) {
  if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

// Moving the focus with the arrow keys, so that many things are one stop of the Tab key.
function arrows(container, selector) {
  container.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = [...container.querySelectorAll(selector)];
    const here = all.indexOf(document.activeElement);
    if (here < 0) return;
    event.preventDefault();
    const next = all[(here + step + all.length) % all.length];
    for (const each of all) each.tabIndex = each === next ? 0 : -1;
    next.focus();
  });
}

// What JupyterLab does not do for a panel. Its own shortcuts (`dd` deletes a cell) are not for whoever presses
// keys there: it looks for this attribute at what has the focus, and at nothing around it. And the handles of
// ipywidgets' sliders have no name.
function shield(panel) {
  for (const slider of panel.querySelectorAll(".widget-slider")) {
    const name = slider.querySelector("label")?.textContent;
    for (const handle of slider.querySelectorAll(".noUi-handle")) if (name) set(handle, "aria-label", name);
  }
  if (panel.ondiskShielded) return;
  panel.ondiskShielded = true;
  panel.addEventListener("focusin", (event) => set(event.target, "data-lm-suppress-shortcuts", "true"));
}
