"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- tables: a click on a head sorts; numbers as numbers, empty cells last either way

  function sortBy(head) {
    const table = head.closest("table"), column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const keyed = [...table.tBodies[0].rows].map((row) => {
      const cell = row.cells[column];
      return { row, text: cell.textContent.trim(), number: cell.dataset.v === undefined ? null : Number(cell.dataset.v) };
    });
    const sign = down ? -1 : 1;
    keyed.sort((a, b) => {
      if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "");
      if (a.number !== null && b.number !== null) return sign * (a.number - b.number);
      if (a.number !== null || b.number !== null) return sign * ((a.number === null) - (b.number === null));
      return sign * a.text.localeCompare(b.text, undefined, { numeric: true });
    });
    table.tBodies[0].append(...keyed.map((entry) => entry.row));
  }
  for (const head of all("thead th")) head.addEventListener("click", () => sortBy(head));

  const columns = one("#columns");
  columns?.addEventListener("click", () => {
    const every = columns.getAttribute("aria-pressed") !== "true";
    columns.setAttribute("aria-pressed", every);
    for (const table of all("table#runs, table#seeds")) table.classList.toggle("few", !every);
  });

  // ---- copying a command

  document.addEventListener("click", async (event) => {
    if (!event.target.matches(".copy")) return;
    const source = event.target.previousElementSibling;
    try {
      await navigator.clipboard.writeText(source.textContent);
    } catch {
      getSelection().selectAllChildren(source);
      document.execCommand("copy");
    }
    event.target.textContent = "copied";
    setTimeout(() => { event.target.textContent = "copy"; }, 1500);
  });

  // ---- curves

  const PALETTES = {
    light: ["#1f5fc4", "#d1590a", "#158243", "#b3246f", "#6d46c4", "#0b8794", "#8a6d00", "#c22f2f", "#50606f", "#7a4c28"],
    dark: ["#7fb0ff", "#ff9d5c", "#5fd08c", "#ff84bd", "#b79cff", "#4fd0dc", "#e0c04a", "#ff8580", "#a9b6c4", "#d9a878"],
  };
  const RAMPS = { light: ["#3b1f8f", "#2a6fbf", "#12958a", "#5a9e1b", "#b58900"], dark: ["#8f7cff", "#5fa8f5", "#3fd0bd", "#9fdc5a", "#ffe066"] };
  const dark = matchMedia("(prefers-color-scheme: dark)");

  function mixed(stops, share) {
    const place = Math.min(share, 0.9999) * (stops.length - 1), low = Math.floor(place), rest = place - low;
    const channel = (stop, at) => parseInt(stop.slice(1 + 2 * at, 3 + 2 * at), 16);
    const mix = [0, 1, 2].map((at) => Math.round(channel(stops[low], at) * (1 - rest) + channel(stops[low + 1], at) * rest));
    return `rgb(${mix.join(" ")})`;
  }

  // Colours of n things: ten that are easily told apart, then hues a golden angle from each other.
  function colourOf(number, count, ordered) {
    const scheme = dark.matches ? "dark" : "light";
    if (ordered) return mixed(RAMPS[scheme], count > 1 ? number / (count - 1) : 0.5);
    if (count <= 10) return PALETTES[scheme][number];
    return `hsl(${(number * 137.508) % 360} 62% ${(dark.matches ? 68 : 38) + 6 * ((number % 3) - 1)}%)`;
  }

  function figure(value, digits = 4) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(Math.max(digits - 2, 0)).replace(/\.?0+e/, "e").replace("e+", "e");
    return String(Number(value.toPrecision(digits)));
  }
  function compact(value) {
    for (const [size, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e4, "k"]])
      if (Math.abs(value) >= size) return `${Number((value / (letter === "k" ? 1e3 : size)).toPrecision(4))}${letter}`;
    return figure(value, 5);
  }

  const exact = (value, axis) => axis === "seconds" ? figure(value, 6) : Math.round(value).toLocaleString("en-US");

  function ticks(low, high, log, count, whole) {
    if (log) {
      const found = [], spread = Math.log10(high / low);
      const steps = spread > 6 ? [1] : spread > 1.5 ? [1, 2, 5] : null;
      if (steps) {
        const every = Math.max(1, Math.ceil(spread / (2 * count)));
        for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1)
          if (power % every === 0) for (const step of steps) found.push(step * 10 ** power);
        return found.filter((tick) => tick >= low && tick <= high);
      }
    }
    const rough = Math.max((high - low) / count, whole ? 1 : 0), power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10, 20, 50].map((n) => Number((n * power).toPrecision(3))).find((n) => n >= rough && (!whole || Number.isInteger(n)));
    const found = [];
    for (let n = Math.ceil(low / step); n * step <= high + step * 1e-9; n += 1) found.push(Number((n * step).toPrecision(12)));
    return found;
  }

  function chart(root, data) {
    const several = data.runs.length > 1;
    const axes = ["step", "tokens", "seconds"].filter((axis) => data.runs.some((run) => run[axis]));
    const both = ["loss", "validation_loss"];
    const choices = (both.every((name) => data.metrics.includes(name)) ? [both] : []).concat(data.metrics.map((name) => [name]));
    const modes = [several ? "run" : "metric", ...Object.keys(data.colours)];
    // Two curves a run are one too many where there are many runs.
    const start = Math.max(0, data.runs.length > 40 ? choices.findIndex((names) => names.join() === "validation_loss") : 0);
    const state = { metrics: choices[start], axis: axes[0] ?? "step", logX: false, logY: false, zoom: null, hidden: new Set(),
      shown: null, mode: modes[several && data.colours["all but the seed"] ? 1 : 0] };

    const controls = one(".controls", root), plot = one(".plot", root), legend = one(".legend", root);
    const caption = one("figcaption", root);
    const paper = element("canvas"), glass = element("canvas"), tip = element("div", { className: "tip", hidden: true });
    paper.setAttribute("role", "img");
    plot.append(paper, glass, tip);

    function selector(name, label, options, chosen, change) {
      const select = element("select", { name });
      for (const [value, text] of options) select.append(element("option", { value, textContent: text }));
      select.value = chosen;
      select.addEventListener("change", () => change(select.value));
      controls.append(element("label", {}, `${label} `, select));
    }
    function box(name, label, change) {
      const input = element("input", { type: "checkbox", name });
      input.addEventListener("change", () => change(input.checked));
      controls.append(element("label", {}, input, ` ${label}`));
    }
    selector("metric", "metric", choices.map((names, at) => [at, names.join(" and ")]), start, (at) => {
      state.metrics = choices[at];
      if (!several) state.hidden.clear();
      unzoomed();
    });
    if (axes.length > 1) selector("axis", "over", axes.map((axis) => [axis, axis]), state.axis, (axis) => { state.axis = axis; unzoomed(); });
    if (modes.length > 1) selector("colour", "colour by", modes.map((mode) => [mode, mode]), state.mode, (mode) => {
      state.mode = mode;
      state.hidden.clear();
      build();
    });
    box("logy", "log y", (on) => { state.logY = on; unzoomed(); });
    box("logx", "log x", (on) => { state.logX = on; unzoomed(); });
    const reset = element("button", { type: "button", name: "reset", textContent: "whole range", disabled: true });
    reset.addEventListener("click", () => unzoomed());
    controls.append(reset);
    for (const [name, hide] of [["all", false], ["none", true]]) {
      const button = element("button", { type: "button", name, textContent: `show ${name}` });
      button.addEventListener("click", () => {
        state.hidden = new Set(hide ? legendKeys() : []);
        build();
      });
      if (several) controls.append(button);
    }

    function unzoomed() { state.zoom = null; build(); }
    const textOf = (run, metric) => state.mode === "metric" ? metric : state.mode === "run" ? data.labels[run] : data.colours[state.mode][run] || "(not set)";

    function legendKeys() {
      const keys = new Set();
      data.runs.forEach((run, at) => {
        for (const metric of state.metrics) if (run.series[metric]) keys.add(textOf(at, metric));
      });
      const list = [...keys];
      const ordered = list.length > 2 && state.mode !== "run" && list.every((key) => key !== "" && Number.isFinite(Number(key)));
      if (ordered) list.sort((a, b) => Number(a) - Number(b));
      list.ordered = ordered;
      return list;
    }

    let lines = [], dropped = 0;
    function build() {
      const keys = legendKeys(), colours = new Map(keys.map((key, at) => [key, colourOf(at, keys.length, keys.ordered)]));
      lines = [];
      dropped = 0;
      data.runs.forEach((run, at) => {
        const axis = run[state.axis];
        if (!axis || (state.shown && !state.shown.has(at))) return;
        for (const metric of state.metrics) {
          const series = run.series[metric], key = textOf(at, metric);
          if (!series || state.hidden.has(key)) continue;
          const points = [];
          series[0].forEach((place, n) => {
            const x = axis[place], y = series[1][n];
            if (x === null || y === null) points.push(null);
            else if ((state.logX && x <= 0) || (state.logY && y <= 0)) dropped += 1;
            else points.push([x, y]);
          });
          const faint = state.metrics.length > 1 && metric === "loss";
          lines.push({ run: at, metric, key, points, faint, colour: colours.get(key), label: several ? data.labels[at] : metric });
        }
      });
      legend.replaceChildren(...(keys.length > 1 ? keys.map((key) => {
        const swatch = element("span", { className: "swatch" });
        swatch.style.background = colours.get(key);
        const button = element("button", { type: "button", title: "click: hide or show" }, swatch, key);
        button.setAttribute("aria-pressed", !state.hidden.has(key));
        button.addEventListener("click", () => {
          if (!state.hidden.delete(key)) state.hidden.add(key);
          build();
        });
        button.addEventListener("mouseenter", () => draw(key));
        button.addEventListener("mouseleave", () => draw());
        return button;
      }) : []));
      draw();
    }

    const into = { x: (value) => state.logX ? Math.log10(value) : value, y: (value) => state.logY ? Math.log10(value) : value };
    const back = { x: (value) => state.logX ? 10 ** value : value, y: (value) => state.logY ? 10 ** value : value };
    let view = null; // ranges in the axes' own scale (log10 where logarithmic) and the plot's place on the canvas

    function ranges() {
      let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
      for (const line of lines) for (const point of line.points) {
        if (!point) continue;
        x0 = Math.min(x0, into.x(point[0])); x1 = Math.max(x1, into.x(point[0]));
      }
      if (state.zoom) [x0, x1] = state.zoom.x;
      for (const line of lines) for (const point of line.points) {
        if (!point || into.x(point[0]) < x0 || into.x(point[0]) > x1) continue;
        y0 = Math.min(y0, into.y(point[1])); y1 = Math.max(y1, into.y(point[1]));
      }
      if (state.zoom?.y) [y0, y1] = state.zoom.y;
      if (!(x0 <= x1)) return null;
      if (!(y0 <= y1)) [y0, y1] = [0, 1];
      if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
      if (y0 === y1) { const pad = state.logY ? 0.05 : Math.abs(y0) * 0.05 || 0.5; y0 -= pad; y1 += pad; }
      else if (!state.zoom?.y) { const pad = (y1 - y0) * 0.04; y0 -= pad; y1 += pad; }
      return { x0, x1, y0, y1 };
    }

    function ready(canvas) {
      const { width, height } = plot.getBoundingClientRect(), density = devicePixelRatio || 1;
      if (canvas.width !== Math.round(width * density) || canvas.height !== Math.round(height * density)) {
        canvas.width = Math.round(width * density);
        canvas.height = Math.round(height * density);
      }
      const pen = canvas.getContext("2d");
      pen.setTransform(density, 0, 0, density, 0, 0);
      pen.clearRect(0, 0, width, height);
      return [pen, width, height];
    }

    function draw(emphasised = null) {
      const [pen, width, height] = ready(paper);
      ready(glass);
      tip.hidden = true;
      const style = getComputedStyle(document.documentElement), ink = (name) => style.getPropertyValue(name).trim();
      const range = ranges();
      pen.font = "12px system-ui, sans-serif";
      reset.disabled = !state.zoom;
      if (!range) {
        view = null;
        pen.fillStyle = ink("--soft");
        pen.fillText("no curve is shown", 16, 28);
        say(null);
        return;
      }
      const left = 58, right = 24, top = 12, bottom = 40;
      view = { ...range, left, top, width: width - left - right, height: height - top - bottom };
      view.px = (x) => left + (into.x(x) - view.x0) / (view.x1 - view.x0) * view.width;
      view.py = (y) => top + (view.y1 - into.y(y)) / (view.y1 - view.y0) * view.height;

      pen.lineWidth = 1;
      pen.strokeStyle = ink("--line");
      pen.fillStyle = ink("--soft");
      pen.textAlign = "center";
      for (const tick of ticks(back.x(view.x0), back.x(view.x1), state.logX, Math.max(2, Math.floor(view.width / 90)), state.axis === "step")) {
        const x = Math.round(view.px(tick)) + 0.5;
        pen.beginPath(); pen.moveTo(x, top); pen.lineTo(x, top + view.height); pen.stroke();
        pen.fillText(compact(tick), x, top + view.height + 16);
      }
      pen.fillText(state.axis === "step" ? "optimiser step" : state.axis, left + view.width / 2, height - 7);
      pen.textAlign = "right";
      for (const tick of ticks(back.y(view.y0), back.y(view.y1), state.logY, Math.max(2, Math.floor(view.height / 50)))) {
        const y = Math.round(view.py(tick)) + 0.5;
        pen.beginPath(); pen.moveTo(left, y); pen.lineTo(left + view.width, y); pen.stroke();
        pen.fillText(figure(tick, 5), left - 7, y + 4);
      }

      pen.save();
      pen.beginPath();
      pen.rect(left, top, view.width, view.height);
      pen.clip();
      const crowd = lines.length > 40 ? 0.5 : lines.length > 12 ? 0.75 : 0.95;
      for (const line of [...lines].sort((a, b) => (a.key === emphasised) - (b.key === emphasised))) trace(pen, line, emphasised, crowd);
      pen.restore();
      say(range);
    }

    function trace(pen, line, emphasised, crowd) {
      const other = emphasised !== null && line.key !== emphasised;
      pen.globalAlpha = other ? 0.12 : line.faint ? crowd * (several ? 0.35 : 0.75) : emphasised === null ? crowd : 1;
      pen.strokeStyle = pen.fillStyle = line.colour;
      pen.lineWidth = line.faint ? 1 : emphasised !== null && !other ? 2.5 : lines.length > 40 ? 1.1 : 1.7;
      pen.lineJoin = "round";
      pen.beginPath();
      let drawing = false, visible = 0;
      for (const point of line.points) {
        if (!point) { drawing = false; continue; }
        const x = view.px(point[0]), y = view.py(point[1]);
        if (drawing) pen.lineTo(x, y); else pen.moveTo(x, y);
        drawing = true;
        if (x >= view.left && x <= view.left + view.width) visible += 1;
      }
      pen.stroke();
      if (visible <= (lines.length > 40 ? 1 : view.width / 16) && !line.faint) for (const point of line.points) {
        if (!point) continue;
        pen.beginPath(); pen.arc(view.px(point[0]), view.py(point[1]), 2.4, 0, 7); pen.fill();
      }
      pen.globalAlpha = 1;
    }

    function say(range) {
      const parts = [];
      if (range) {
        const name = state.axis === "step" ? "Steps" : state.axis === "tokens" ? "Tokens" : "Seconds";
        parts.push(`${name} ${exact(back.x(range.x0), state.axis)} to ${exact(back.x(range.x1), state.axis)}`);
      }
      const visible = new Set(lines.filter((line) => line.points.some(Boolean)).map((line) => line.run)).size;
      if (several) parts.push(`curves of ${visible} of ${data.runs.length} runs`);
      if (data.thinned > 1) parts.push(`long curves are drawn by the smallest and the largest value of up to ${data.thinned} rows; all rows are in metrics.jsonl`);
      if (dropped) parts.push(`${dropped} values that are not above 0 have no place on a logarithmic axis`);
      parts.push("drag: zoom, double-click: whole range");
      caption.textContent = `${parts.join("; ")}.`;
      paper.setAttribute("aria-label", `${state.metrics.join(" and ")} over ${state.axis}. ${caption.textContent}`);
    }

    function nearest(points, x) {
      let low = 0, high = points.length - 1;
      while (low < high) { const middle = (low + high) >> 1; if (points[middle][0] < x) low = middle + 1; else high = middle; }
      return low > 0 && x - points[low - 1][0] <= points[low][0] - x ? low - 1 : low;
    }

    function hover(px, py) {
      const [pen] = ready(glass);
      tip.hidden = true;
      if (!view || px < view.left || px > view.left + view.width || py < view.top || py > view.top + view.height) return;
      const x = back.x(view.x0 + (px - view.left) / view.width * (view.x1 - view.x0));
      const found = [];
      for (const line of lines) {
        line.solid ??= line.points.filter(Boolean);
        if (!line.solid.length) continue;
        const point = line.solid[nearest(line.solid, x)], at = [view.px(point[0]), view.py(point[1])];
        if (at[0] < view.left - 1 || at[0] > view.left + view.width + 1 || at[1] < view.top - 1 || at[1] > view.top + view.height + 1) continue;
        found.push({ line, point, at, away: Math.hypot((at[0] - px) * 2, at[1] - py) });
      }
      if (!found.length) return;
      found.sort((a, b) => a.away - b.away);
      // What stands at another place than the pointer is not told with it, unless there is nothing else.
      const here = found.filter(({ at }) => Math.abs(at[0] - px) < 16);
      if (!here.length) here.push(found[0]);
      const close = here.slice(0, plot.clientWidth < 500 ? 5 : 8).sort((a, b) => a.at[1] - b.at[1]);
      for (const { line, at } of close) {
        pen.fillStyle = line.colour;
        pen.beginPath(); pen.arc(at[0], at[1], 4, 0, 7); pen.fill();
      }
      const title = element("div", {}, element("strong", { textContent: `${state.axis} ${exact(here[0].point[0], state.axis)}` }));
      tip.replaceChildren(title, ...close.map(({ line, point }) => {
        const swatch = element("span", { className: "swatch" });
        swatch.style.background = line.colour;
        const name = several && state.metrics.length > 1 ? `${line.label} ${line.metric}` : line.label;
        const elsewhere = point[0] === here[0].point[0] ? "" : ` at ${exact(point[0], state.axis)}`;
        const value = element(line === here[0].line ? "strong" : "span", { textContent: figure(point[1], 5) });
        return element("div", {}, swatch, element("span", { className: "label", textContent: name + elsewhere }), value);
      }));
      if (here.length > close.length) tip.append(element("div", { className: "note", textContent: `and ${here.length - close.length} more` }));
      tip.hidden = false;
      const room = plot.clientWidth - px, below = plot.clientHeight - py;
      tip.style.left = room > tip.offsetWidth + 20 ? `${px + 14}px` : `${Math.max(4, px - tip.offsetWidth - 14)}px`;
      tip.style.top = below > tip.offsetHeight + 20 ? `${py + 14}px` : `${Math.max(4, py - tip.offsetHeight - 14)}px`;
    }

    // Dragging zooms along x; with a mouse, and as high as it is wide, along y, too.
    let from = null;
    const place = (event) => { const at = plot.getBoundingClientRect(); return [event.clientX - at.left, event.clientY - at.top]; };
    const tall = (event, at) => event.pointerType === "mouse" && Math.abs(at[1] - from[1]) > 40;
    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !view) return;
      from = place(event);
      if (event.pointerType === "mouse") plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointermove", (event) => {
      const at = place(event);
      if (!from) return hover(...at);
      const [pen] = ready(glass), high = tall(event, at);
      tip.hidden = true;
      pen.fillStyle = dark.matches ? "#7fb0ff33" : "#1f5fc422";
      pen.fillRect(from[0], high ? from[1] : view.top, at[0] - from[0], high ? at[1] - from[1] : view.height);
    });
    plot.addEventListener("pointerup", (event) => {
      if (!from || !view) return;
      const at = place(event), start = from, high = tall(event, at);
      from = null;
      if (Math.abs(at[0] - start[0]) < 8) return hover(...at);
      const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
      const xs = [start[0], at[0]].map((px) => view.x0 + clamp((px - view.left) / view.width, 0, 1) * (view.x1 - view.x0));
      const ys = [start[1], at[1]].map((py) => view.y1 - clamp((py - view.top) / view.height, 0, 1) * (view.y1 - view.y0));
      const sorted = (pair) => pair.sort((a, b) => a - b);
      if (xs[0] !== xs[1]) state.zoom = { x: sorted(xs), y: high ? sorted(ys) : null };
      draw();
    });
    plot.addEventListener("pointercancel", () => { from = null; draw(); });
    plot.addEventListener("pointerleave", () => { if (!from) { ready(glass); tip.hidden = true; } });
    plot.addEventListener("dblclick", () => unzoomed());
    new ResizeObserver(() => draw()).observe(plot);
    dark.addEventListener("change", () => build());
    build();
    return { show(runs) { state.shown = runs; build(); } };
  }

  const holder = one("#curve-data");
  const curves = holder ? chart(one("figure.curves"), JSON.parse(holder.textContent)) : null;

  // ---- attention: a token that is pointed at colours what it attends to

  function attention(root, data) {
    const count = data.labels.length, wide = data.sinks + count;
    const bytes = Uint8Array.from(atob(data.weights), (character) => character.charCodeAt(0));
    const state = { layer: 0, head: "mean", token: count - 1 };
    const controls = one(".controls", root), caption = one("figcaption", root), canvas = one("canvas", root);
    const names = [...Array.from({ length: data.sinks }, (_, at) => `sink ${at + 1}`), ...data.labels];

    const weight = (head, row, column) => bytes[((state.layer * data.heads + head) * count + row) * wide + column] / 255;
    function weights(row) {
      const heads = state.head === "mean" ? [...Array(data.heads).keys()] : [Number(state.head)];
      return names.map((_, column) => heads.reduce((sum, head) => sum + weight(head, row, column), 0) / heads.length);
    }

    function selector(name, options, change) {
      const select = element("select", { name });
      for (const option of options) select.append(element("option", { value: option, textContent: option }));
      select.addEventListener("change", () => { change(select.value); show(); draw(); });
      controls.append(element("label", {}, `${name} `, select));
    }
    selector("layer", [...Array(data.layers).keys()], (value) => { state.layer = Number(value); });
    selector("head", ["mean", ...Array(data.heads).keys()], (value) => { state.head = value; });

    const buttons = names.map((label, column) => {
      const button = element("button", { type: "button", textContent: label, title: `token ${column - data.sinks}` });
      if (column < data.sinks) { button.disabled = true; button.title = "a learned sink, which is no part of the text"; }
      const choose = () => { state.token = column - data.sinks; show(); };
      for (const event of ["pointerenter", "focus", "click"]) button.addEventListener(event, choose);
      return button;
    });
    one(".tokens", root).append(...buttons);

    function show() {
      const row = weights(state.token);
      buttons.forEach((button, column) => {
        button.style.setProperty("--weight", `${Math.round(Math.sqrt(row[column]) * 100)}%`);
        button.setAttribute("aria-pressed", column === state.token + data.sinks);
      });
      const most = row.map((share, column) => [share, column]).sort((a, b) => b[0] - a[0]).slice(0, 5).filter(([share]) => share >= 0.005);
      caption.textContent = `Layer ${state.layer}, head ${state.head}: “${data.labels[state.token]}” attends to ` +
        most.map(([share, column]) => `“${names[column]}” ${(100 * share).toFixed(1)} %`).join(", ") + ".";
    }

    // The map of the chosen head: rows look, columns are looked at. A click chooses the row's token.
    function draw() {
      canvas.width = wide;
      canvas.height = count;
      const pen = canvas.getContext("2d"), image = pen.createImageData(wide, count);
      for (let row = 0; row < count; row += 1) weights(row).forEach((share, column) => {
        const at = 4 * (row * wide + column), level = Math.sqrt(share);
        const stops = dark.matches ? ["#14171c", "#7fb0ff", "#ffffff"] : ["#ffffff", "#1f5fc4", "#14171c"];
        const [red, green, blue] = mixed(stops, level).match(/\d+/g).map(Number);
        image.data.set([red, green, blue, 255], at);
      });
      pen.putImageData(image, 0, 0);
    }
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      state.token = Math.min(count - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * count)));
      show();
    });
    dark.addEventListener("change", () => { show(); draw(); });
    show();
    draw();
  }
  const heads = one("#attention-data");
  if (heads) attention(one("figure.attention"), JSON.parse(heads.textContent));

  // ---- the filter: what a row does not have hides its run everywhere on the page

  const filter = one("#filter");
  filter?.addEventListener("input", () => {
    // At the beginning of a word, so that "finished" leaves out "unfinished", and 32 leaves out 132.
    const words = filter.value.split(/\s+/).filter(Boolean).map((word) =>
      new RegExp(`(?<![\\p{L}\\p{N}.])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}`, "iu"));
    const shown = new Set();
    const rows = all("#runs tbody tr");
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ");
      if (words.every((word) => word.test(text))) shown.add(Number(row.dataset.run));
    }
    for (const part of all("[data-run]")) part.hidden = !shown.has(Number(part.dataset.run));
    one("#count").textContent = words.length ? `${shown.size} of ${rows.length}` : "";
    curves?.show(words.length ? shown : null);
  });
})();
