// The browser part of a timeline: draws `state` (ondisk/lab/pictures/timeline.py), and says where to go.
// After common.js.

const MARKS = { request: "▾", answer: "▴", election: "★", replica: "◆", link: "✕", fault: "⚡", violation: "⚠" };
const PAGE = 0.1; // of the whole: what PageUp and PageDown go if nothing has happened there

function seconds(time) {
  return `${time.toFixed(Math.abs(time) < 10 ? 3 : 2)} s`;
}

function render({ model, el }) {
  const root = make("div", "ondisk-timeline", el);
  set(root, "role", "group");
  set(root, "aria-label", "Timeline");
  const act = (what, on = null) => model.send({ do: what, on });
  const buttons = make("div", "buttons", root);
  const button = (name, title, action) => {
    const made = make("button", "", buttons);
    made.textContent = name;
    made.title = title;
    made.addEventListener("click", action);
    return made;
  };
  const earlier = button("Previous event", "Where something happened before this", () => jump(-1));
  const back = button("Back", "One step earlier", () => act("back"));
  const play = button("Play", "Show it from there on", () => act("play"));
  const forward = button("Forward", "One step later", () => act("forward"));
  const later = button("Next event", "Where something happened after this", () => jump(+1));
  const live = button("Live", "Show it as it is now", () => act("live"));
  const label = make("label", "", buttons);
  label.append("Speed ");
  const speed = make("select", "", label);
  speed.addEventListener("change", () => act("speed", Number(speed.value)));
  const clock = make("output", "clock", buttons);
  const track = make("div", "track", root);
  set(track, "role", "slider");
  set(track, "aria-label", "Moment");
  track.tabIndex = 0;
  const rail = make("div", "rail", track);
  const bands = make("div", "layer", track);
  const marks = make("div", "layer", track);
  const handle = make("div", "handle", track);
  let drawn = "";

  const state = () => model.get("state");
  const here = () => state().at ?? state().last;
  const part = (time) => {
    const { first, last } = state();
    return last > first ? Math.min(1, Math.max(0, (time - first) / (last - first))) : 1;
  };

  // Marks at the same place are one event: the next one is somewhere else.
  function jump(direction) {
    const { marks, first, last } = state();
    const near = (last - first) / 500;
    const times = marks.map((mark) => mark.time).filter((time) => (time - here()) * direction > near);
    if (times.length) act("go", direction > 0 ? Math.min(...times) : Math.max(...times));
    else act("go", direction > 0 ? last : first);
  }

  function timeAt(event) {
    const box = rail.getBoundingClientRect();
    const { first, last } = state();
    return first + Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * (last - first);
  }

  track.addEventListener("pointerdown", (event) => {
    track.setPointerCapture(event.pointerId);
    const mark = event.target.closest(".mark");
    act("go", mark ? Number(mark.dataset.time) : timeAt(event));
  });
  track.addEventListener("pointermove", (event) => {
    if (track.hasPointerCapture(event.pointerId) && event.buttons) act("go", timeAt(event));
  });
  track.addEventListener("keydown", (event) => {
    const { first, last } = state();
    const keys = {
      ArrowLeft: () => act("back"),
      ArrowDown: () => act("back"),
      ArrowRight: () => act("forward"),
      ArrowUp: () => act("forward"),
      PageUp: () => jump(+1),
      PageDown: () => jump(-1),
      Home: () => act("go", first),
      End: () => act("go", last),
      " ": () => act("play"),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  function mark(each) {
    const made = make("span", `mark ${each.kind || "other"}`, marks);
    made.textContent = MARKS[each.kind] ?? "•";
    made.title = `${seconds(each.time - state().first)}: ${each.text}`;
    made.dataset.time = each.time;
    made.style.left = `${100 * part(each.time)}%`;
  }

  function show() {
    const now = state();
    if (!now.marks) return;
    const look = JSON.stringify([now.marks, now.bands, now.first, now.last]);
    if (look !== drawn) {
      drawn = look;
      marks.replaceChildren();
      now.marks.forEach(mark);
      bands.replaceChildren();
      for (const [since, until] of now.bands) {
        const band = make("span", "band", bands);
        band.title = now.band;
        band.style.left = `${100 * part(since)}%`;
        band.style.width = `${Math.max(0.3, 100 * (part(until) - part(since)))}%`;
      }
    }
    const at = here();
    handle.style.left = `${100 * part(at)}%`;
    track.classList.toggle("now", now.at === null);
    set(track, "aria-valuemin", 0);
    set(track, "aria-valuemax", (now.last - now.first).toFixed(3));
    set(track, "aria-valuenow", (at - now.first).toFixed(3));
    const latest = now.marks.filter((each) => each.time <= at + 1e-3).at(-1);
    const when = now.at === null ? "now" : seconds(at - now.first);
    set(track, "aria-valuetext", `${when}${latest ? `, after: ${latest.text}` : ""}`);
    say(clock, `${when} of ${seconds(now.last - now.first)}`);
    set(play, "aria-pressed", now.playing);
    set(back, "aria-disabled", now.at !== null && at <= now.first);
    set(forward, "aria-disabled", now.at === null || at >= now.last);
    live.hidden = !now.live;
    set(live, "aria-disabled", now.at === null);
    if (speed.children.length !== now.speeds.length) {
      for (const [value, name] of now.speeds) {
        const option = make("option", "", speed);
        option.value = value;
        option.textContent = name;
      }
    }
    speed.value = String(now.speed);
  }

  const attached = new ResizeObserver(() => shield(el.closest(".ondisk-panel") ?? el));
  attached.observe(root);
  model.on("change:state", show);
  show();
  return () => {
    model.off("change:state", show);
    attached.disconnect();
  };
}

export default { render };
