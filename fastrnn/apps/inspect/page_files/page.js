"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const LEVELS = 255, MIDDLE = 127;

  function bytes(base64) {
    const found = atob(base64);
    const out = new Uint8Array(found.length);
    for (let k = 0; k < found.length; k++) out[k] = found.charCodeAt(k);
    return out;
  }

  function make(name, properties = {}, ...children) {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  }

  function drawn(name, attributes, parent) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (parent) parent.append(element);
    return element;
  }

  const number = (value, digits = 3) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
  const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
  const named = { "\n": "↵", " ": "␣", "\t": "⇥" };
  const symbol = (c) => named[c] ?? visible(c);
  // Control characters are shown as symbols, because they have no width or change the layout.
  const visible = (c) => (c < " " && c !== "\n" && c !== "\t" ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : c === "\x7f" ? "␡" : c);

  // ---- the data --------------------------------------------------------------------------------------------------
  const characters = Array.from(data.text);
  const ends = new Uint32Array(characters.length);
  for (let k = 0, unit = -1; k < characters.length; k++) ends[k] = unit += data.steps ? Number(data.steps[k]) : 1;
  const wide = data.symbols.length > 256 ? 2 : 1;
  const expected = bytes(data.expected), shares = bytes(data.shares), bits = bytes(data.bits);
  const id = (k) => (wide === 2 ? expected[2 * k] + 256 * expected[2 * k + 1] : expected[k]);
  const tracks = new Map(data.tracks.map((track) => [`${track.layer}:${track.quantity}:${track.unit}`, track]));
  const levelsOf = (track) => (track.levels ??= bytes(track.data));
  const valueOf = (track, level) => track.centre + ((level - MIDDLE) / MIDDLE) * track.half;
  const describe = (track) => `${data.layers[track.layer].name}, ${kind(track)} ${track.quantity}, unit ${track.unit + 1}`;
  const kind = (track) => (data.layers[track.layer].gates.includes(track.quantity) ? "gate" : "state");

  // ---- the text --------------------------------------------------------------------------------------------------
  const text = byId("text");
  const lines = [0];
  const spans = characters.map((c, k) => {
    const span = document.createElement("span");
    span.textContent = visible(c);
    span.dataset.k = k;
    if (c === "\n") lines.push(k + 1);
    return span;
  });
  text.append(...spans);

  const rules = [];
  for (let level = 0; level < LEVELS; level++) {
    const strength = Math.abs(level - MIDDLE) / MIDDLE;
    const colour = level < MIDDLE ? "--minus" : "--plus";
    rules.push(`.v${level}{background:rgb(var(${colour}) / calc(${strength.toFixed(3)} * var(--strongest)))}`);
  }
  document.head.append(make("style", { textContent: rules.join("") }));

  let current = null;
  function colour(track) {
    const levels = levelsOf(track);
    for (let k = 0; k < spans.length; k++) {
      spans[k].className = `v${levels[ends[k]]}` + (characters[k] === "\n" ? " end" : "") + (k === at ? " at" : "");
    }
  }

  function drawScale() {
    const canvas = byId("scale"), context = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const strongest = Number(style.getPropertyValue("--strongest"));
    context.clearRect(0, 0, canvas.width, 1);
    for (let k = 0; k < canvas.width; k++) {
      const value = (2 * k) / (canvas.width - 1) - 1;
      context.fillStyle = `rgb(${style.getPropertyValue(value < 0 ? "--minus" : "--plus")} / ${Math.abs(value) * strongest})`;
      context.fillRect(k, 0, 1, 1);
    }
  }

  // ---- the choice of a unit --------------------------------------------------------------------------------------
  const layer = byId("layer"), quantity = byId("quantity"), unit = byId("unit");
  const unique = (values) => [...new Set(values)];
  function fill(select, entries, value) {
    select.replaceChildren(...entries.map(([key, label]) => make("option", { value: key, textContent: label })));
    select.value = entries.some(([key]) => String(key) === String(value)) ? String(value) : String(entries[0][0]);
  }
  const unitsOf = (l, q) => data.tracks.filter((t) => t.layer === l && t.quantity === q).map((t) => t.unit).sort((a, b) => a - b);
  const quantitiesOf = (l) => data.layers[l].quantities.filter((q) => data.tracks.some((t) => t.layer === l && t.quantity === q));

  function choose(track) {
    current = track;
    fill(layer, unique(data.tracks.map((t) => t.layer)).sort((a, b) => a - b).map((l) => [l, data.layers[l].name]), track.layer);
    const gates = data.layers[track.layer].gates;
    fill(quantity, quantitiesOf(track.layer).map((q) => [q, `${gates.includes(q) ? "gate" : "state"} ${q}`]), track.quantity);
    fill(unit, unitsOf(track.layer, track.quantity).map((u) => [u, u + 1]), track.unit);
    colour(track);
    byId("low").textContent = number(track.centre - track.half, 2);
    byId("high").textContent = number(track.centre + track.half, 2);
    byId("centre").textContent = `white is ${track.centre}`.replace("white", matchMedia("(prefers-color-scheme: dark)").matches ? "black" : "white");
    for (const chip of document.querySelectorAll(".chips button")) {
      chip.setAttribute("aria-pressed", String(chip.dataset.key === keyOf(track)));
    }
    ring(track);
    look(at);
  }
  const keyOf = (t) => `${t.layer}:${t.quantity}:${t.unit}`;

  function chooseNear(l, q, u) {
    const quantities = quantitiesOf(l);
    if (!quantities.includes(q)) q = quantities[0];
    const units = unitsOf(l, q);
    choose(tracks.get(`${l}:${q}:${units.includes(u) ? u : units[0]}`));
  }

  function move(by) {
    const units = unitsOf(current.layer, current.quantity);
    const place = (units.indexOf(current.unit) + by + units.length) % units.length;
    choose(tracks.get(`${current.layer}:${current.quantity}:${units[place]}`));
  }
  layer.addEventListener("change", () => chooseNear(Number(layer.value), current.quantity, current.unit));
  quantity.addEventListener("change", () => chooseNear(current.layer, quantity.value, current.unit));
  unit.addEventListener("change", () => chooseNear(current.layer, current.quantity, Number(unit.value)));
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target instanceof HTMLSelectElement) return;
    if (event.key === "n" || event.key === "p") move(event.key === "n" ? 1 : -1);
  });

  // ---- the selected place -------------------------------------------------------------------------------
  let at = 0;
  const lineOf = (k) => {
    let low = 0, high = lines.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (lines[middle] <= k) low = middle;
      else high = middle - 1;
    }
    return low;
  };

  // Sum over all units of a character.
  function costOf(k) {
    const first = Math.min(k > 0 ? ends[k - 1] + 1 : 1, ends[k]);
    const own = bits.subarray(first, ends[k] + 1);
    const sum = own.reduce((total, one) => total + one, 0) / 16;
    return own.includes(255) ? `more than ${(Math.floor(10 * sum) / 10).toFixed(1)}` : sum.toFixed(1);
  }
  // The symbol of a multi-byte character's first byte.
  const leadOf = (c) => (c === null || c < "\x80" || c === "\ufffd" ? null : `\\x${new TextEncoder().encode(c)[0].toString(16)}`);

  function look(k) {
    if (!spans.length) return;
    spans[at].classList.remove("at");
    at = Math.min(Math.max(k, 0), spans.length - 1);
    spans[at].classList.add("at");
    const step = ends[at], line = lineOf(at), level = levelsOf(current)[step];
    const cost = costOf(at);
    byId("readout").replaceChildren(
      make("code", { textContent: symbol(characters[at]) }), ` line ${line + 1}, column ${at - lines[line] + 1}`, make("br"),
      `${describe(current)}: `, make("b", { textContent: number(valueOf(current, level)) }), make("br"),
      at === 0 ? "first character: not predicted" : `cost the model ${cost} bits (−log₂ of its probability)`,
    );
    const following = characters[at + 1] === undefined ? null : characters[at + 1];
    const rows = [];
    for (let k = step * data.top; k < (step + 1) * data.top; k++) {
      const sign = data.symbols[id(k)], share = shares[k] / 255;
      const bar = make("div", { className: "share" });
      bar.style.width = `${100 * share}%`;
      const came = sign === following || sign === leadOf(following);
      const row = make("tr", { className: came ? "came" : "" },
        make("td", { className: "symbol", textContent: symbol(sign) }), make("td", { textContent: percent(share) }), make("td", {}, bar));
      if (came) row.title = "this is what came";
      rows.push(row);
    }
    byId("expected").tBodies[0].replaceChildren(...rows);
  }

  function lookAndShow(k) {
    if (!spans.length) return;
    look(k);
    spans[at].scrollIntoView({ block: "nearest" });
  }
  text.addEventListener("pointerover", (event) => {
    if (event.target.dataset.k) look(Number(event.target.dataset.k));
  });
  text.addEventListener("keydown", (event) => {
    const line = lineOf(at), column = at - lines[line];
    const upOrDown = (to) => Math.min(lines[to] + column, (lines[to + 1] ?? spans.length + 1) - 1);
    const targets = {
      ArrowLeft: () => at - 1,
      ArrowRight: () => at + 1,
      ArrowUp: () => (line > 0 ? upOrDown(line - 1) : at),
      ArrowDown: () => (line + 1 < lines.length ? upOrDown(line + 1) : at),
      Home: () => (event.ctrlKey ? 0 : lines[line]),
      End: () => (event.ctrlKey ? spans.length - 1 : (lines[line + 1] ?? spans.length + 1) - 1),
    };
    if (!(event.key in targets) || event.altKey || event.metaKey) return;
    event.preventDefault();
    lookAndShow(targets[event.key]());
  });

  // ---- rankings --------------------------------------------------------------------------------------------------
  for (const feature of data.ranking) {
    const chips = make("div", { className: "chips" });
    for (const [l, q, u, score] of feature.rows) {
      const key = `${l}:${q}:${u}`;
      const chip = make("button", { type: "button", disabled: !tracks.has(key) }, `${l + 1}:${q}:${u + 1} `, make("b", { textContent: number(score, 2) }));
      chip.dataset.key = key;
      chip.title = `${data.layers[l].name}, ${q}, unit ${u + 1}` + (tracks.has(key) ? "" : ": not in this page, which has no room for it");
      chip.addEventListener("click", () => choose(tracks.get(key)));
      chips.append(chip);
    }
    if (!feature.rows.length) chips.append(make("span", { className: "note", textContent: "does not change in this text" }));
    byId("ranking").tBodies[0].append(make("tr", {}, make("td", {},
      make("div", { className: "name" }, feature.name, make("small", { textContent: feature.rows.length ? feature.measure : "" })), chips)));
  }

  // ---- saturation ------------------------------------------------------------------------------------------------
  const SIZE = 138, LEFT = 42, TOP = 8;
  const plots = new Map();
  const dotsOf = (entry) => [bytes(entry.left), bytes(entry.right)];
  for (const entry of data.saturation) {
    if (!plots.has(entry.gate)) {
      const svg = drawn("svg", { viewBox: "0 0 186 186", role: "img", "aria-label": `saturation of gate ${entry.gate}, a dot for each unit` });
      drawn("path", { class: "axis", d: `M${LEFT} ${TOP}V${TOP + SIZE}H${LEFT + SIZE}M${LEFT} ${TOP}L${LEFT + SIZE} ${TOP + SIZE}` }, svg);
      for (const share of [0, 0.5, 1]) {
        drawn("text", { x: LEFT + share * SIZE, y: TOP + SIZE + 13, "text-anchor": "middle" }, svg).textContent = share;
        drawn("text", { x: LEFT - 5, y: TOP + (1 - share) * SIZE + 4, "text-anchor": "end" }, svg).textContent = share;
      }
      drawn("text", { x: LEFT + SIZE / 2, y: TOP + SIZE + 26, "text-anchor": "middle" }, svg).textContent = "above 0.9";
      drawn("text", { x: 0, y: 0, transform: `translate(9 ${TOP + SIZE / 2}) rotate(-90)`, "text-anchor": "middle" }, svg).textContent = "below 0.1";
      byId("saturation").append(make("figure", {}, make("figcaption", { textContent: `gate ${entry.gate}` }), svg));
      plots.set(entry.gate, svg);
    }
    const [left, right] = dotsOf(entry);
    for (let u = 0; u < left.length; u++) {
      const x = LEFT + (right[u] / 254) * SIZE, y = TOP + (1 - left[u] / 254) * SIZE;
      const colours = `dot layer-${entry.layer % 3}`;
      const dot = entry.layer % 2 ? drawn("rect", { class: colours, x: x - 2.2, y: y - 2.2, width: 4.4, height: 4.4 })
        : drawn("circle", { class: colours, cx: x, cy: y, r: 2.6 });
      drawn("title", {}, dot).textContent = `${data.layers[entry.layer].name}, unit ${u + 1}: below ${percent(left[u] / 254)}, above ${percent(right[u] / 254)}`;
      const key = `${entry.layer}:${entry.gate}:${u}`;
      if (tracks.has(key)) dot.addEventListener("click", () => choose(tracks.get(key)));
      plots.get(entry.gate).append(dot);
    }
  }
  for (const l of unique(data.saturation.map((entry) => entry.layer))) {
    const svg = drawn("svg", { viewBox: "0 0 10 10", style: "width:10px;height:10px" });
    drawn(l % 2 ? "rect" : "circle", l % 2 ? { class: `layer-${l % 3}`, x: 1, y: 1, width: 8, height: 8 } : { class: `layer-${l % 3}`, cx: 5, cy: 5, r: 4 }, svg);
    byId("saturated").before(make("span", { className: "key" }, svg, data.layers[l].name));
  }
  if (!data.saturation.length) {
    byId("saturation-section").querySelector(".note").textContent = "The cells of this model have no gates.";
  }

  function ring(track) {
    const found = [];
    for (const old of document.querySelectorAll(".ring")) old.remove();
    for (const entry of data.saturation) {
      if (entry.layer !== track.layer) continue;
      const [left, right] = dotsOf(entry);
      const l = left[track.unit] / 254, r = right[track.unit] / 254;
      drawn("circle", { class: "ring", cx: LEFT + r * SIZE, cy: TOP + (1 - l) * SIZE, r: 6 }, plots.get(entry.gate));
      found.push(`${entry.gate} below ${percent(l)}, above ${percent(r)}`);
    }
    byId("saturated").textContent = found.length ? `Ringed: ${data.layers[track.layer].name}, unit ${track.unit + 1}: ${found.join("; ")}.` : "";
  }

  byId("about").textContent = data.about;
  drawScale();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawScale(); choose(current); });
  choose(data.tracks[0]);
  document.documentElement.dataset.ready = "yes";
})();
