// A page that plays a recording (ondisk/lab/pictures/recording.py) with the panel's own browser parts, `panel`
// and `timeline`, which were put before it. What a kernel does for them is done here.

const QUIET = 0.5; // seconds without anything that are waited for

// What a widget's browser part knows of its kernel.
class Model {
  #values = {};
  #heard = new Set();

  constructor(hear = () => {}) {
    this.send = (content) => hear(content.do, content.on);
  }

  get(name) {
    return this.#values[name] ?? {};
  }

  set(name, value) {
    this.#values[name] = value;
    for (const each of this.#heard) each();
  }

  on(_, call) {
    this.#heard.add(call);
  }

  off(_, call) {
    this.#heard.delete(call);
  }
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Show {
  #frame = 0;
  #since = 0;
  #shown = -1;
  #takes = 0; // how often it was gone somewhere: messages under way do not come along

  constructor({ pictures, line, captions }) {
    this.pictures = pictures;
    this.captions = captions;
    this.line = line;
    this.at = line.first;
    this.speed = line.speed;
    this.picture = new Model();
    this.timeline = new Model((what, on) => this.#act(what, on));
    panel.render({ model: this.picture, el: document.getElementById("picture") });
    timeline.render({ model: this.timeline, el: document.getElementById("line") });
    const events = document.getElementById("events");
    for (const mark of line.marks) {
      const button = make("button", "", make("li", "", events));
      button.textContent = `${(mark.time - line.first).toFixed(3)} s: ${mark.text}`;
      button.addEventListener("click", () => this.#act("go", mark.time));
    }
    this.go(this.at);
  }

  // The number of the newest picture that is not later than this.
  #number(time) {
    const later = this.pictures.findIndex((each) => each.time > time + 1e-6);
    return Math.max(0, (later < 0 ? this.pictures.length : later) - 1);
  }

  #act(what, on) {
    if (what === "play") return this.playing ? this.stop() : this.start();
    if (what === "speed") {
      this.speed = on;
      this.#shown = -1;
      return this.show();
    }
    const here = this.#number(this.at);
    const steps = { back: this.pictures[here].time < this.at - 1e-6 ? 0 : -1, forward: +1 };
    if (what in steps) {
      this.stop();
      on = this.pictures[Math.min(Math.max(0, here + steps[what]), this.pictures.length - 1)].time;
    }
    this.go(on);
  }

  go(time) {
    this.at = Math.min(Math.max(time, this.line.first), this.line.last);
    this.#takes += 1;
    this.#shown = -1;
    this.show();
  }

  start() {
    if (this.at >= this.line.last) this.go(this.line.first);
    this.playing = true;
    this.#since = performance.now();
    this.#frame = requestAnimationFrame(() => this.#tick());
    this.#shown = -1;
    this.show();
  }

  stop() {
    this.playing = false;
    cancelAnimationFrame(this.#frame);
    this.#shown = -1;
    this.show();
  }

  #tick() {
    const now = performance.now();
    this.at += (this.speed * (now - this.#since)) / 1000;
    this.#since = now;
    const next = this.pictures[this.#number(this.at) + 1];
    if (next && next.time > this.at + QUIET) {
      this.at = next.time - QUIET; // nothing happens: at once to what comes then
      this.#shown = -1;
    }
    if (this.at >= this.line.last) {
      this.at = this.line.last;
      return this.stop();
    }
    this.show();
    this.#frame = requestAnimationFrame(() => this.#tick());
  }

  show() {
    const number = this.#number(this.at);
    if (number !== this.#shown) {
      this.#shown = number;
      const picture = this.pictures[number];
      const rate = this.playing ? this.speed : 0;
      this.picture.set("state", { ...picture, time: this.at, rate, takes: this.#takes });
      const caption = this.captions.filter((each) => each.time <= this.at + 1e-6).at(-1) ?? this.captions[0];
      say(document.getElementById("caption"), caption?.text ?? "");
    }
    this.timeline.set("state", { ...this.line, at: this.at, playing: Boolean(this.playing), speed: this.speed });
  }
}

new Show(await unpack(document.getElementById("recording").textContent));
document.getElementById("message").remove();
