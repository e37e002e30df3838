// The browser part of the panel's picture: draws `state` (ondisk/lab/pictures/living.py) and moves messages
// at the display's rate. What comes from the kernel becomes text, never HTML. After common.js.

const LANE = 21; // pixels between two directions of a link
const GAP = 10; // between two cards
const BEHIND = 0.12; // seconds between what happens and what is drawn
const SHORTEST = 0.35; // seconds that a message can be seen, however fast it was
const TOO_LATE = 1; // seconds: what would be drawn so late is not drawn
const LEGEND = [["durable", "durable"], ["volatile", "in memory only"], ["none", "✓ committed"], ["none", "● applied"]];

// The cluster's clock, as near as can be told from samples that come late. At rate 0 it stands still.
class Clock {
  #offsets = [];
  #rate = 0;
  #takes = 0;

  // `takes` is another one after each jump.
  hear(time, rate, takes) {
    const offset = time - (rate * performance.now()) / 1000;
    const jumps = Math.abs(offset - Math.max(...this.#offsets, -Infinity)) > 1;
    if (!rate || rate !== this.#rate || takes !== this.#takes || jumps) this.#offsets = [];
    this.#offsets = [...this.#offsets.slice(-20), offset]; // the sample that was fastest is right
    this.#rate = rate;
    this.#takes = takes;
  }

  // So much later messages are drawn, because the kernel tells of them later.
  get drawn() {
    return this.now - this.#rate * BEHIND;
  }

  get now() {
    return (this.#rate * performance.now()) / 1000 + Math.max(...this.#offsets);
  }
}

// A menu: what something is, and what can be done with it. One at a time.
class Menu {
  #root;
  #box = null;
  #opener = null;
  #about = null; // gives the words and the actions, of now

  constructor(root, act) {
    this.#root = root;
    this.act = act;
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#box) {
        event.stopPropagation();
        this.close();
      }
    });
    root.addEventListener("focusout", (event) => {
      if (this.#box && event.relatedTarget && !this.#box.contains(event.relatedTarget)) this.close(false);
    });
  }

  open(opener, about) {
    const again = this.#opener === opener;
    this.close(false);
    if (again) return;
    this.#opener = opener;
    this.#about = about;
    set(opener, "aria-expanded", true);
    this.#box = make("div", "menu", this.#root);
    this.#box.setAttribute("role", "dialog");
    make("p", "", this.#box);
    const list = make("div", "", this.#box);
    list.setAttribute("role", "menu");
    arrows(list, "button");
    this.refresh();
    const [here, all] = [opener.getBoundingClientRect(), this.#root.getBoundingClientRect()];
    const left = Math.min(here.left - all.left, all.width - this.#box.offsetWidth - 4);
    let top = here.bottom - all.top + 4;
    if (top + this.#box.offsetHeight > all.height) top = all.height - this.#box.offsetHeight;
    this.#box.style.left = `${Math.max(0, left)}px`;
    this.#box.style.top = `${Math.max(0, top)}px`;
    this.#box.tabIndex = -1;
    (list.querySelector("button") ?? this.#box).focus();
  }

  refresh() {
    if (!this.#box) return;
    const { name, words, on, actions } = this.#about();
    const [text, list] = this.#box.children;
    set(this.#box, "aria-label", name);
    set(list, "aria-label", `What can be done: ${name}`);
    list.hidden = !actions.length;
    say(text, words);
    while (list.children.length > actions.length) list.lastChild.remove();
    actions.forEach((action, place) => {
      let button = list.children[place];
      if (!button) {
        button = make("button", "", list);
        button.setAttribute("role", "menuitem");
        button.tabIndex = place ? -1 : 0;
        make("span", "", button);
        make("small", "", button);
        button.addEventListener("click", () => this.#choose(button));
      }
      button.ondiskAction = { ...action, on };
      set(button, "aria-disabled", Boolean(action.not));
      say(button.children[0], action.name);
      say(button.children[1], ` ${action.not || action.meaning}`);
    });
  }

  #choose(button) {
    const action = button.ondiskAction;
    if (action.not) return;
    this.close();
    this.act(action.do, action.on);
  }

  close(focus = true) {
    if (!this.#box) return;
    const [box, opener] = [this.#box, this.#opener];
    this.#box = this.#opener = null;
    set(opener, "aria-expanded", false);
    if (focus) opener.focus?.();
    box.remove();
  }
}

// One replica.
class Card {
  constructor(parent, menu, find) {
    this.box = make("div", "card", parent);
    set(this.box, "role", "group");
    const head = make("div", "head", this.box);
    this.who = make("button", "who", head);
    set(this.who, "aria-haspopup", "menu");
    set(this.who, "aria-expanded", false);
    this.term = make("span", "term", head);
    this.note = make("div", "note", this.box);
    this.timer = make("span", "timer", this.note);
    this.noteText = make("span", "", this.note);
    this.marks = make("div", "marks", this.box);
    this.log = make("ol", "log", this.box);
    arrows(this.log, ".row");
    this.values = make("div", "state", this.box);
    this.disk = make("button", "disk", this.box);
    set(this.disk, "aria-haspopup", "dialog");
    this.disk.addEventListener("click", () => menu.open(this.disk, () => this.aboutDisk()));
    this.menu = menu;
    this.find = find; // this replica in the newest state
    this.who.addEventListener("click", () => menu.open(this.who, () => this.about()));
  }

  about() {
    const r = this.find();
    return {
      name: `Replica ${r.id}`,
      words: `Replica ${r.id}: ${r.role}, term ${r.term}. Its ${r.log}. ${r.note}`,
      on: r.id,
      actions: r.actions,
    };
  }

  aboutDisk() {
    const r = this.find();
    const words = `The state of replica ${r.id} is a RocksDB. ${r.disk.map((part) => part.words).join(" ")}`;
    return { name: `RocksDB of replica ${r.id}`, words, on: r.id, actions: [] };
  }

  show(r) {
    this.box.className = `card ${r.leads ? "leads" : ""} ${r.runs ? "" : "down"} ${r.bad ? "bad" : ""}`;
    set(this.box, "aria-label", `Replica ${r.id}`);
    say(this.who, `Replica ${r.id}: ${r.role}`);
    say(this.term, `term ${r.term}`);
    set(this.note, "title", r.note);
    this.electionAt = r.electionAt;
    this.plainNote = r.note;
    this.tick(null);
    this.#children(this.marks, r.marks, "div", (item, mark) => {
      if (!item.children.length) item.append(make("span", "soft"), make("span"));
      say(item.children[0], mark.name);
      say(item.children[1], mark.at);
      set(item, "title", mark.meaning);
    });
    set(this.log, "aria-label", `Newest entries of the log of replica ${r.id}`);
    this.#children(this.log, r.cells, "li", (item, cell, place) => this.#row(item, cell, place));
    this.#children(this.values, r.values, "div", (item, value) => {
      if (!item.children.length) item.append(make("span", "key"), make("span", "what"), make("span", "old"));
      item.className = `value ${value.old ? "old" : ""}`;
      say(item.children[0], value.key);
      say(item.children[1], value.value);
      say(item.children[2], value.old ? "old" : "");
      set(item, "title", value.words);
    });
    this.disk.hidden = !r.disk.length;
    set(this.disk, "aria-label", `RocksDB of replica ${r.id}: ${r.disk.map((part) => part.name).join(", ")}`);
    this.#children(this.disk, r.disk, "span", (item, part) => {
      item.className = part.whole ? "" : "part";
      say(item, part.name);
      set(item, "title", part.words);
    });
  }

  #children(parent, items, tag, fill) {
    while (parent.children.length > items.length) parent.lastChild.remove();
    items.forEach((item, place) => fill(parent.children[place] ?? make(tag, "", parent), item, place));
  }

  #row(item, cell, place) {
    let row = item.firstChild;
    if (!row) {
      row = make("button", "", item);
      row.tabIndex = place ? -1 : 0;
      row.append(make("span", "soft"), make("span", "soft term"), make("span"), make("span"));
      set(row, "aria-haspopup", "dialog");
      row.addEventListener("click", () => {
        const about = () => {
          const now = this.find().cells.find((each) => each.index === row.ondiskIndex) ?? row.ondiskCell;
          return { name: `Entry ${now.index}`, words: now.words, on: null, actions: [] };
        };
        this.menu.open(row, about);
      });
    }
    row.ondiskIndex = cell.index;
    row.ondiskCell = cell;
    row.className = `row ${!cell.there ? "gone" : cell.durable ? "durable" : "volatile"}`;
    say(row.children[0], cell.index);
    say(row.children[1], cell.there ? `t${cell.term}` : "");
    say(row.children[2], cell.text);
    say(row.children[3], cell.there ? `${cell.committed ? "✓" : ""}${cell.applied ? "●" : ""}` : "");
    set(row, "aria-label", cell.words);
    set(row, "title", cell.words);
  }

  // A timer that runs down; `now` is null between two frames.
  tick(now) {
    const left = this.electionAt === null || now === null ? null : Math.max(0, this.electionAt - now);
    this.timer.hidden = left === null;
    this.timer.style.display = left === null ? "none" : "";
    if (left !== null) {
      const part = Math.round(Math.min(1, left / 0.7) * 360);
      this.timer.style.background = `conic-gradient(var(--bad) ${part}deg, transparent 0)`;
    }
    const why = this.plainNote ? `${this.plainNote};` : "hears no leader:";
    say(this.noteText, left === null ? this.plainNote : `${why} calls an election in ${left.toFixed(1)} s`);
    return left !== null && left > 0;
  }
}

// The links, and what is on its way.
class Sky {
  #flights = new Map(); // by number and departure: what is drawn
  #done = new Set();
  #free = new Map(); // when the last message was seen to arrive, by replica
  #lanes = new Map();
  #halves = new Map(); // of labels that look alike: what was measured
  #ids = "";

  constructor(root, menu, find) {
    this.box = make("div", "sky", root);
    set(this.box, "role", "group");
    set(this.box, "aria-label", "Links");
    this.svg = draw("svg", "", this.box);
    set(this.svg, "role", "img");
    this.lines = draw("g", "", this.svg);
    this.messages = draw("g", "", this.svg);
    this.menu = menu;
    this.find = find;
    arrows(this.box, "button.link");
  }

  show(state, now) {
    set(this.svg, "aria-label", state.words);
    const ids = state.replicas.map((r) => r.id);
    if (this.#ids !== ids.join()) {
      this.#ids = ids.join();
      this.#build(ids);
    }
    for (const link of state.links) {
      const lane = this.#lanes.get(`${link.from}-${link.to}`);
      const bad = link.word === "cut" || link.word === "stalled";
      lane.line.setAttribute("class", `lane ${bad ? "bad" : ""} ${link.word === "down" ? "down" : ""}`);
      lane.button.className = `link ${bad ? "bad" : ""}`;
      say(lane.button, `${link.from} → ${link.to}${link.word === "ok" ? "" : ` ${link.word}`}`);
      set(lane.button, "aria-label", `Link ${link.from} → ${link.to} ${link.word}`);
    }
    this.layout();
    this.#take(state, now);
  }

  #build(ids) {
    this.lines.replaceChildren();
    for (const each of this.#lanes.values()) each.button.remove();
    this.#lanes.clear();
    this.places = new Map(ids.map((id, place) => [id, place]));
    // Each pair has a level of its own wherever its links would overlap with others; short ones lowest.
    const pairs = ids.flatMap((_, i) => ids.slice(i + 1).map((_, j) => [i, i + 1 + j]));
    pairs.sort((p, q) => p[1] - p[0] - (q[1] - q[0]));
    const levels = [];
    for (const [i, j] of pairs) {
      let level = 0;
      while (levels.some((used) => used.level === level && i < used.j && used.i < j)) level += 1;
      levels.push({ i, j, level });
    }
    const high = Math.max(-1, ...levels.map((each) => each.level)) + 1;
    this.height = 2 * LANE * high + 8;
    this.box.style.height = `${this.height}px`;
    for (const { i, j, level } of levels) {
      const bottom = this.height - 10 - level * 2 * LANE;
      this.#lane(ids[i], ids[j], bottom - LANE);
      this.#lane(ids[j], ids[i], bottom);
    }
    [...this.#lanes.values()].forEach((lane, place) => (lane.button.tabIndex = place ? -1 : 0));
  }

  #lane(from, to, y) {
    const line = draw("path", "lane", this.lines);
    const head = draw("path", "lane", this.lines); // by itself, because a line may be dashed
    const button = make("button", "link", this.box);
    set(button, "aria-haspopup", "menu");
    set(button, "aria-expanded", false);
    const about = () => {
      const state = this.find();
      const link = state.links.find((each) => each.from === from && each.to === to);
      const under = state.flights.filter((each) => each.from === from && each.to === to && !each.done);
      const what = under.length ? under.map((each) => each.text).join("; ") : "nothing";
      const words = { ok: "it works", cut: "cut: what is sent here is lost", stalled: "stalled: what is sent here waits", down: "one end is down" };
      return {
        name: `Link ${from} → ${to}`,
        words: `Link from ${from} to ${to}: ${words[link.word] ?? link.word}. On its way: ${what}.`,
        on: [from, to],
        actions: link.actions,
      };
    };
    button.addEventListener("click", () => this.menu.open(button, about));
    this.#lanes.set(`${from}-${to}`, { from, to, y, line, head, button });
  }

  layout() {
    const width = this.box.clientWidth;
    if (!width || !this.places) return;
    const card = (width - GAP * (this.places.size - 1)) / this.places.size;
    const middle = (id) => this.places.get(id) * (card + GAP) + card / 2;
    // First all is measured, then all is moved: in turns each measurement would lay out the page anew.
    const measured = [...this.#lanes.values()].map((lane) => [lane, lane.button.offsetWidth]);
    for (const [lane, text] of measured) {
      const right = middle(lane.to) > middle(lane.from) ? 1 : -1;
      const x = middle(lane.from) + right * 6;
      lane.button.style.top = `${lane.y - 9}px`;
      lane.button.style.left = `${right > 0 ? x : x - text}px`;
      lane.start = x + right * (text + 4);
      lane.end = middle(lane.to) - right * 6;
      const back = lane.end - right * 6;
      set(lane.line, "d", `M${lane.start} ${lane.y}H${lane.end}`);
      set(lane.head, "d", `M${back} ${lane.y - 4}L${lane.end} ${lane.y}L${back} ${lane.y + 4}`);
    }
  }

  // Messages of a new sample. What was too fast to be seen is drawn slower, in its order: an answer leaves
  // only after the question was seen to arrive.
  #take(state, now) {
    // Another network counts anew, so the number alone is not enough.
    const arrivals = state.flights.map((each) => ({ ...each, n: `${each.n} at ${each.sent}` }));
    const here = new Set(arrivals.map((each) => each.n));
    for (const [n, flight] of this.#flights) {
      if (!here.has(n) && !flight.done && state.rate && state.time < flight.due - 0.03) flight.lost = true;
      if (!state.rate && !here.has(n)) this.#end(n);
    }
    const moment = state.recorded && (state.rate ? `played ${state.takes}` : state.time); // a still is by itself
    if (moment !== this.moment) {
      this.moment = moment;
      for (const n of [...this.#flights.keys()]) this.#end(n);
      this.#done.clear();
      this.#free.clear();
    }
    for (const each of arrivals) {
      const known = this.#flights.get(each.n);
      if (known) {
        known.held = each.held;
        known.lost ||= each.lost;
        continue;
      }
      if (this.#done.has(each.n) || (!state.rate && each.done)) continue;
      const shortest = SHORTEST * state.rate;
      const fast = each.due - each.sent < shortest && !each.held;
      let [from, until] = [each.sent, each.due];
      if (fast) {
        from = Math.max(from, this.#free.get(each.from) ?? 0);
        if (from > now + TOO_LATE) continue;
        until = from + shortest;
        this.#free.set(each.to, Math.max(this.#free.get(each.to) ?? 0, until));
      }
      if (until < now - 1 && state.rate && !each.held) continue; // long ago: this view is new
      this.#flights.set(each.n, this.#draw({ ...each, from_: from, until }));
    }
  }

  #draw(flight) {
    const g = draw("g", `flight ${flight.empty ? "heartbeat" : ""}`, this.messages);
    const dot = draw("circle", `dot ${flight.empty ? "empty" : ""}`, g);
    set(dot, "r", flight.empty ? 3.5 : 6);
    if (!flight.empty) {
      flight.label = draw("text", "", g);
      flight.label.textContent = flight.text;
      set(flight.label, "text-anchor", "middle");
      set(flight.label, "y", -8);
    }
    g.addEventListener("click", () => {
      const [sent, due] = [flight.sent, flight.due].map((time) => time.toFixed(3));
      const words = `${flight.from} → ${flight.to}: ${flight.text}. Sent at ${sent} s, due at ${due} s of the cluster's clock.${flight.lost ? " It was lost." : ""}`;
      this.menu.open(this.#lanes.get(`${flight.from}-${flight.to}`).button, () => {
        const link = this.find().links.find((each) => each.from === flight.from && each.to === flight.to);
        return { name: "Message", words, on: [flight.from, flight.to], actions: link.actions };
      });
    });
    return { ...flight, g };
  }

  #end(n) {
    this.#flights.get(n)?.g.remove();
    this.#flights.delete(n);
    this.#done.add(n);
    if (this.#done.size > 500) this.#done = new Set([...this.#done].slice(-200));
  }

  // Half the width of a label. Digits are about as wide as each other, so that few need to be measured.
  #half(label) {
    const look = label.textContent.replace(/\d/g, "0");
    if (!this.#halves.has(look)) {
      if (this.#halves.size > 200) this.#halves.clear();
      this.#halves.set(look, label.getComputedTextLength() / 2);
    }
    return this.#halves.get(look);
  }

  // Move everything to where it is at this moment; say whether anything goes on moving.
  tick(now) {
    const labelled = new Map(); // on each lane: the places of words
    for (const [n, flight] of [...this.#flights].sort((a, b) => a[1].sent - b[1].sent)) {
      const lane = this.#lanes.get(`${flight.from}-${flight.to}`);
      const span = flight.until - flight.from_;
      let part = span > 0 ? (now - flight.from_) / span : 0.5;
      const over = flight.held ? false : part > 1;
      if (over && (now > flight.until + 0.02 || flight.done)) {
        this.#end(n);
        continue;
      }
      if (flight.lost) {
        flight.lostAt ??= now;
        flight.g.setAttribute("class", "flight lost");
        if (flight.label) say(flight.label, `${flight.text} — lost`);
        part = Math.min(part, (flight.lostAt - flight.from_) / span);
        if (now > flight.lostAt + 0.8) {
          this.#end(n);
          continue;
        }
      }
      flight.g.style.display = part < 0 || !lane || lane.start === undefined ? "none" : "";
      if (part < 0 || !lane || lane.start === undefined) continue;
      const x = lane.start + (lane.end - lane.start) * (0.03 + 0.94 * Math.min(1, part));
      flight.g.setAttribute("transform", `translate(${x.toFixed(1)} ${lane.y})`);
      if (flight.label) {
        const half = this.#half(flight.label);
        const [low, high] = [Math.min(lane.start, lane.end) + half, Math.max(lane.start, lane.end) - half];
        const middle = low < high ? Math.min(Math.max(x, low), high) : x;
        const others = labelled.get(lane) ?? [];
        const free = others.every((other) => Math.abs(other.middle - middle) > other.half + half + 6);
        flight.label.style.visibility = free ? "" : "hidden";
        if (free) labelled.set(lane, [...others, { middle, half }]);
        set(flight.label, "x", (middle - x).toFixed(1));
      }
    }
    return this.#flights.size > 0;
  }
}

function render({ model, el }) {
  const scroll = make("div", "ondisk-living-scroll", el);
  const root = make("div", "ondisk-living", scroll);
  set(root, "role", "group");
  set(root, "aria-label", "The cluster: replicas, links and messages");
  const menu = new Menu(root, (what, on) => model.send({ do: what, on }));
  const clock = new Clock();
  const still = window.matchMedia("(prefers-reduced-motion: reduce)");
  const sky = new Sky(root, menu, () => model.get("state"));
  const cards = make("div", "cards", root);
  const foot = make("div", "foot", root);
  const notes = make("div", "notes", foot);
  const legend = make("div", "legend", foot);
  for (const [name, words] of LEGEND) {
    const item = make("span", "", legend);
    make("span", `row ${name}`, item);
    item.append(words);
  }
  set(notes, "role", "log");
  set(notes, "aria-live", "polite");
  const byId = new Map();
  let frame = 0;

  function tick() {
    frame = 0;
    const now = clock.now;
    let moves = sky.tick(clock.drawn);
    for (const card of byId.values()) moves = card.tick(now) || moves;
    if (moves && model.get("state").rate && !still.matches) frame ||= requestAnimationFrame(tick);
  }

  function show() {
    const state = model.get("state");
    if (!state.replicas) return;
    clock.hear(state.time, state.rate, state.takes);
    const ids = new Set(state.replicas.map((r) => r.id));
    for (const [id, card] of byId) {
      if (!ids.has(id)) {
        card.box.remove();
        byId.delete(id);
      }
    }
    cards.style.setProperty("--count", ids.size);
    for (const r of state.replicas) {
      const find = () => model.get("state").replicas.find((each) => each.id === r.id) ?? r;
      if (!byId.has(r.id)) byId.set(r.id, new Card(cards, menu, find));
      byId.get(r.id).show(r);
    }
    sky.show(state, clock.drawn);
    notes.classList.toggle("recorded", Boolean(state.recorded));
    say(notes, state.recorded || state.notes.at(-1) || "Click a replica, a link, an entry or a message.");
    menu.refresh();
    frame ||= requestAnimationFrame(tick);
  }

  const resized = new ResizeObserver(() => {
    shield(el.closest(".ondisk-panel") ?? el); // by now it is attached
    sky.layout();
    frame ||= requestAnimationFrame(tick);
  });
  resized.observe(root);
  model.on("change:state", show);
  show();
  return () => {
    model.off("change:state", show);
    resized.disconnect();
    cancelAnimationFrame(frame);
  };
}

export default { render };
