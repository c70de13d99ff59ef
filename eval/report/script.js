"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const reached = rate => data.codecs.filter(codec => data.pictures.some(p => p.numbers[`${rate}/${codec}`]));
const ours = data.rates.filter(rate => reached(rate).includes("ours"));
const state = { rate: ours[Math.floor(ours.length / 2)] ?? data.rates.at(-1), left: "original", right: "ours", zoom: "1×" };
const order = { column: "ours", up: true };

function element(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

const dot = codec => element("i", { className: `dot ${codec}` });
const numbers = (picture, codec) => picture.numbers[`${state.rate}/${codec}`];
const digits = (value, count) => value == null ? "–" : value.toFixed(count);

function chooser(name, values) {
  document.getElementById(name).append(...values.map(value => {
    const button = element("button", { textContent: value, type: "button" });
    button.dataset.value = value;
    button.onclick = () => { state[name] = value; draw(); };
    return button;
  }));
}

// The table of every picture: a column a codec, and how ours stands to the best of the others.
function lead(picture) {
  const ours = numbers(picture, "ours");
  const others = reached(state.rate).filter(codec => codec !== "ours").map(codec => numbers(picture, codec)?.db ?? -Infinity);
  const best = Math.max(...others);
  return ours?.db == null || !isFinite(best) ? null : ours.db - best;
}

function columns() {
  const codecs = reached(state.rate);
  const ours = key => picture => numbers(picture, "ours")?.[key] ?? null;
  return [
    { name: "picture", label: ["picture"], value: picture => picture.name, text: true },
    { name: "lead", label: ["lead"], value: lead, signed: true,
      show: v => v == null ? "–" : (v < 0 ? "−" : "+") + Math.abs(v).toFixed(2) },
    { name: "bytes", label: ["bytes of ours"], value: ours("bytes"), show: v => v == null ? "–" : v.toLocaleString("en") },
    { name: "bpp", label: ["bpp"], value: ours("bpp"), show: v => digits(v, 3) },
    { name: "psnr", label: ["PSNR"], value: ours("psnr"), show: v => digits(v, 2) },
    ...codecs.map(codec => ({
      name: codec, label: [dot(codec), codec], codec, show: v => digits(v, 2),
      value: picture => numbers(picture, codec)?.db ?? null,
    })),
  ];
}

function compare(a, b) {
  if (a == null || b == null) return (a == null) - (b == null);
  const by = typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b;
  return order.up ? by : -by;
}

function drawTable() {
  const all = columns();
  const by = all.find(column => column.name === order.column) ?? all[0];
  const head = element("tr", {}, ...all.map(column => {
    const cell = element("th", { className: column.text ? "sort text" : "sort", scope: "col", tabIndex: 0 }, ...column.label);
    cell.dataset.name = column.name;
    if (column === by) cell.setAttribute("aria-sort", order.up ? "ascending" : "descending");
    cell.onclick = () => {
      order.up = order.column === column.name ? !order.up : true;
      order.column = column.name;
      drawTable();
    };
    cell.onkeydown = event => { if (event.key === "Enter") cell.onclick(); };
    return cell;
  }));
  const sorted = [...data.pictures].sort((a, b) => compare(by.value(a), by.value(b)));
  const rows = sorted.map(picture => {
    const best = Math.max(...all.filter(column => column.codec).map(column => column.value(picture) ?? -Infinity));
    return element("tr", {}, ...all.map(column => {
      const value = column.value(picture);
      if (column.text) {
        const shown = data.shown[picture.stem];
        const name = shown ? element("a", { href: `#${anchor(picture.stem)}`, textContent: value }) : value;
        return element("td", { className: "text" }, name);
      }
      const mark = column.signed && value != null ? (value < 0 ? "bad" : "good") : column.codec && value === best ? "best" : "";
      return element("td", { textContent: column.show(value), className: mark });
    }));
  });
  document.querySelector("#images thead").replaceChildren(head);
  document.querySelector("#images tbody").replaceChildren(...rows);
}

// The pictures: two views of the same part under a divider that follows the pointer or the arrow keys.
const anchor = stem => "picture-" + data.pictures.findIndex(picture => picture.stem === stem);
const key = side => state[side] === "original" ? "original" : `${state.rate}/${state[side]}`;

function card(picture) {
  const { sources, part } = data.shown[picture.stem];
  const [left, right] = [element("img", { alt: "" }), element("img", { alt: "", className: "right" })];
  const [leftTag, rightTag] = [element("span", { className: "tag l" }), element("span", { className: "tag r" })];
  const view = element("div", { className: "view", tabIndex: 0, role: "slider" }, left, right, leftTag, rightTag);
  view.setAttribute("aria-label", `Divider between left and right, ${picture.name}`);
  view.setAttribute("aria-valuemin", 0);
  view.setAttribute("aria-valuemax", 100);
  const [width, height] = part.split(" ").filter(word => /^\d+$/.test(word)).map(Number);
  view.style.aspectRatio = `${width} / ${height}`;
  let at = 50;
  const move = to => {
    at = Math.min(100, Math.max(0, to));
    view.style.setProperty("--x", `${at}%`);
    view.setAttribute("aria-valuenow", Math.round(at));
  };
  view.onpointermove = view.onpointerdown = event => {
    const box = view.getBoundingClientRect();
    move(100 * (event.clientX - box.left) / box.width);
  };
  view.onkeydown = event => {
    const step = { ArrowLeft: -2, ArrowRight: 2, Home: -100, End: 100 }[event.key];
    if (step) { move(at + step); event.preventDefault(); }
  };
  move(50);
  const rows = element("tbody");
  const head = element("tr");
  head.innerHTML = '<th class="text">codec</th><th>bytes</th><th>bpp</th><th>MS-SSIM</th><th>dB</th><th>PSNR</th>';
  const table = element("div", { className: "scroll" }, element("table", {}, element("thead", {}, head), rows));
  const made = element("section", { className: "card", id: anchor(picture.stem) },
    element("h2", { textContent: picture.name }), element("p", { textContent: part }), view, table);
  const draw = () => {
    for (const [image, tag, side] of [[left, leftTag, "left"], [right, rightTag, "right"]]) {
      image.src = sources[key(side)];
      const n = state[side] === "original" ? null : numbers(picture, state[side]);
      tag.textContent = n ? `${state[side]} · ${n.bytes.toLocaleString("en")} B · ${digits(n.db, 2)} dB` : state[side];
    }
    view.style.width = `${width * parseInt(state.zoom)}px`;
    view.classList.toggle("big", state.zoom !== "1×");
    const codecs = reached(state.rate);
    const best = Math.max(...codecs.map(codec => numbers(picture, codec).msssim ?? -1));
    rows.replaceChildren(...codecs.map(codec => {
      const n = numbers(picture, codec);
      const cell = (text, mark) => element("td", { textContent: text, className: mark ? "best" : "" });
      const top = n.msssim === best;
      return element("tr", {}, element("td", { className: "text" }, dot(codec), codec),
        cell(n.bytes.toLocaleString("en")), cell(digits(n.bpp, 3)), cell(digits(n.msssim, 4), top),
        cell(digits(n.db, 2), top), cell(digits(n.psnr, 2)));
    }));
  };
  return { picture, made, draw };
}

const cards = data.pictures.filter(picture => data.shown[picture.stem]).map(card);

function draw() {
  const sides = ["original", ...reached(state.rate)];
  for (const side of ["left", "right"]) if (!sides.includes(state[side])) state[side] = "original";
  for (const name of ["rate", "left", "right", "zoom"])
    for (const button of document.getElementById(name).children) {
      button.setAttribute("aria-pressed", button.dataset.value === state[name]);
      if (name === "left" || name === "right") button.disabled = !sides.includes(button.dataset.value);
    }
  drawTable();
  const worst = side => numbers(side.picture, "ours")?.msssim ?? 0;
  const place = document.getElementById("pictures");
  place.classList.toggle("wide", state.zoom !== "1×");
  place.replaceChildren(...cards.toSorted((a, b) => worst(a) - worst(b)).map(one => one.made));
  for (const one of cards) one.draw();
}

document.getElementById("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};
chooser("rate", data.rates);
chooser("left", ["original", ...data.codecs]);
chooser("right", ["original", ...data.codecs]);
chooser("zoom", ["1×", "2×"]);
draw();
