(() => {
  "use strict";
  const find = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const table = find("#results"), filters = find("#filters"), groups = [...table.tBodies];
  const plots = find("#plots"), axis = find("#axis");

  // Sorting: inside of each block, never across.

  const value = (row, column) => {
    const cell = row.cells[column];
    return "sort" in cell.dataset ? cell.dataset.sort : cell.textContent.trim();
  };

  function compare(a, b) {
    if (a === "" || b === "") return a === b ? 0 : a === "" ? 1 : -1; // what is not known comes last either way
    const difference = a - b;
    return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
  }

  function sort(header, descending) {
    const column = header.cellIndex, turn = descending ? -1 : 1;
    for (const each of header.parentElement.cells) each.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    for (const group of groups) {
      const rows = all("tr.row", group).map((row) => [value(row, column), row]);
      rows.sort(([a], [b]) => compare(a, b) * (a === "" || b === "" ? 1 : turn));
      group.append(...rows.map(([, row]) => row));
    }
  }

  for (const button of all("thead button", table)) {
    const header = button.closest("th");
    button.addEventListener("click", () => {
      const now = header.getAttribute("aria-sort");
      sort(header, now ? now === "ascending" : header.classList.contains("number"));
    });
  }

  // Filters

  const shown = (row) => !row.closest("tbody").hidden && (filters.real.checked || row.classList.contains("made"));

  const wanted = ({ dataset }) =>
    ["regime", "dataset", "student", "protocol"].every((name) => ["", dataset[name]].includes(filters.elements[name].value));

  function filter() {
    for (const group of groups) group.hidden = !wanted(group) || !(filters.real.checked || find(".made", group));
    table.classList.toggle("without-real", !filters.real.checked);
    table.classList.toggle("with-costs", filters.costs?.checked ?? false);
    const rows = all("tr.row", table), left = rows.filter(shown).length;
    find("#count").textContent = left === rows.length ? `${left} rows` : `${left} of ${rows.length} rows`;
    find("#none").hidden = left > 0;
    draw();
  }

  filters.addEventListener("change", filter);
  filters.addEventListener("submit", (event) => event.preventDefault());
  find("#reset").addEventListener("click", () => (filters.reset(), filter()));

  // A set

  function open() {
    const set = /^#set-\d+$/.test(location.hash) ? find(location.hash) : null;
    for (const other of all("dialog[open]")) if (other !== set) other.close();
    if (set && !set.open) {
      for (const image of all("img[data-same]", set)) image.src = document.getElementById(image.dataset.same).src;
      set.showModal();
      set.scrollTop = 0;
    }
  }

  for (const set of all("dialog")) {
    set.addEventListener("close", () => {
      if (location.hash === `#${set.id}`) history.replaceState(null, "", location.pathname + location.search);
    });
    set.addEventListener("click", (event) => event.target === set && set.close());
  }
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a");
    if (link && link.getAttribute("href") === location.hash) open(); // no change of the hash
  });
  addEventListener("hashchange", open);

  // Plots: a panel for each block; against bytes, which is what regimes differ in, one for all labels of as many images.

  const WIDTH = 320, HEIGHT = 190, LEFT = 34, RIGHT = 312, TOP = 8, BOTTOM = 160, MOST = 24;
  const UNITS = { images: "", bytes: "B", flop: "" };

  const make = (name, attributes = {}, ...children) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, text] of Object.entries(attributes)) node.setAttribute(key, text);
    node.append(...children);
    return node;
  };

  const short = (number, unit) => {
    const power = number < 10000 ? 0 : Math.min(Math.floor(Math.log10(number) / 3), 6);
    const digits = power ? +(number / 1000 ** power).toPrecision(3) : Math.round(number).toLocaleString("en");
    return `${digits} ${["", "k", "M", "G", "T", "P", "E"][power]}${unit}`.trim();
  };

  function panels(name) {
    const found = new Map(), bytes = name === "bytes";
    const add = ({ regime, dataset, protocol, student, split }, row, kind, colour) => {
      const { mean, std, set, images, name: label } = row.dataset;
      const title = bytes ? `${images} images` : regime;
      const key = JSON.stringify([title, dataset, protocol, student, split]);
      if (!found.has(key)) found.set(key, { dataset, about: [title, protocol, student].join(" · "), points: [] });
      const point = { x: +row.dataset[name], y: 100 * mean, spread: 100 * std, kind, set, label, colour };
      found.get(key).points.push(point);
    };
    for (const group of groups)
      for (const row of all("tr.row", group))
        if (shown(row) && name in row.dataset) add(group.dataset, row, row.dataset.kind, group.className);
    if (bytes && !filters.elements.regime.value)
      for (const row of all("tr.labels")) if (wanted(row)) add(row.dataset, row, "labels", "unknown");
    const varies = (points) => new Set(points.map(({ x }) => x)).size > 1;
    return [...found.values()].filter(({ points }) => varies(points) && points.some(isMade));
  }

  const isMade = ({ kind }) => kind === "distilled" || kind === "labels";

  // The place of a number: on a logarithmic scale, with a place of its own for nothing.
  function horizontal(points) {
    const known = points.map(({ x }) => x).filter((x) => x > 0), nothing = known.length < points.length;
    const start = nothing ? LEFT + 46 : LEFT + 18, stop = RIGHT - 18;
    const low = Math.log10(Math.min(...known)), high = Math.log10(Math.max(...known));
    const place = (x) => {
      if (x <= 0) return LEFT + 16;
      return high > low ? start + ((Math.log10(x) - low) / (high - low)) * (stop - start) : (start + stop) / 2;
    };
    const ticks = [];
    for (const x of [...new Set(points.map(({ x }) => x))].sort((a, b) => a - b))
      if (!ticks.length || place(x) - place(ticks.at(-1)) > 46) ticks.push(x);
    return [place, ticks];
  }

  function vertical(points) {
    const low = Math.max(0, Math.min(...points.map(({ y, spread }) => y - spread)));
    const high = Math.min(100, Math.max(...points.map(({ y, spread }) => y + spread)));
    const step = [1, 2, 5, 10, 20, 25].find((step) => (high - low) / step <= 4) ?? 25;
    const first = Math.floor(low / step) * step, last = Math.max(Math.ceil(high / step) * step, first + step);
    const ticks = [];
    for (let tick = first; tick <= last; tick += step) ticks.push(tick);
    return [(y) => BOTTOM - ((y - first) / (last - first)) * (BOTTOM - TOP), ticks];
  }

  function mark({ kind }) {
    if (kind === "distilled") return make("circle", { class: "mark made", r: 5 });
    if (kind === "labels") return make("rect", { class: "mark made", x: -4.5, y: -4.5, width: 9, height: 9 });
    if (kind === "random") return make("circle", { class: "mark", r: 4.2 });
    return make("path", { class: "mark", d: kind === "full data" ? "M0-5.5 5.5 0 0 5.5-5.5 0Z" : "M0-5 5 4H-5Z" });
  }

  function panel({ dataset, about, points }, name) {
    const [x, across] = horizontal(points), [y, up] = vertical(points);
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "group" });
    for (const tick of up)
      svg.append(
        make("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y(tick), y2: y(tick) }),
        make("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
      );
    for (const tick of across)
      svg.append(make("text", { x: x(tick), y: BOTTOM + 17, "text-anchor": "middle" }, short(tick, UNITS[name])));
    const written = [];
    points.sort((a, b) => isMade(a) - isMade(b));
    for (const point of points) {
      const { kind, set, label, spread } = point, at = { x: x(point.x), y: y(point.y) };
      const numbers = `${point.y.toFixed(1)} ± ${spread.toFixed(1)} %`;
      const words = `${isMade(point) ? label : `${kind}, beside ${label}`}: ${numbers}, ${short(point.x, UNITS[name])}`;
      const node = make("a", { href: `#set-${set}`, class: point.colour, "aria-label": words });
      if (spread)
        node.append(make("line", { class: "spread", x1: at.x, x2: at.x, y1: y(Math.min(point.y + spread, up.at(-1))), y2: y(Math.max(point.y - spread, up[0])) }));
      const shape = mark(point);
      shape.setAttribute("transform", `translate(${at.x} ${at.y})`);
      node.append(shape, make("title", {}, words));
      svg.append(node);
      if (isMade(point) && !written.some((other) => Math.hypot((other.x - at.x) / 8, other.y - at.y) < 13)) {
        const right = at.x < WIDTH * 0.6, text = label.length > 26 ? `${label.slice(0, 25)}…` : label;
        svg.append(make("text", { class: "name", x: at.x + (right ? 9 : -9), y: at.y + 4, "text-anchor": right ? "start" : "end" }, text));
        written.push(at);
      }
    }
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    const bold = document.createElement("b");
    bold.textContent = dataset;
    caption.append(bold, ` ${about}`);
    figure.className = "panel";
    figure.append(caption, svg);
    return figure;
  }

  function draw() {
    const name = axis.value, found = panels(name);
    find(".panels", plots).replaceChildren(...found.slice(0, MOST).map((each) => panel(each, name)));
    const told = found.length > MOST ? `The first ${MOST} of ${found.length} blocks; filter to see others.` : "";
    find(".note", plots).textContent = found.length ? told : "No block has rows that differ in this.";
    find("#compared").hidden = name !== "bytes" || !find("tr.labels");
    plots.hidden = false;
  }

  axis.addEventListener("change", draw);
  filter(); // a browser may have kept what was chosen before
  open();
})();
