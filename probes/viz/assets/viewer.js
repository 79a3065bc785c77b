// Adds to the plain HTML: enlarging a head, arrow keys, hover, and the per-head scale.
// Text only ever enters through textContent. The tables agree with heat_table.py.
(() => {
  const make = (tag, name, text) => {
    const node = document.createElement(tag);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  const LARGE = 40; // Cells a side above which a map is shown in parts: a table of all would freeze the page.

  async function unpack({ levels, top, text }) {
    const bytes = Uint8Array.from(atob(text), (char) => char.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = await new Response(stream).arrayBuffer();
    return Float32Array.from(new Uint16Array(raw), (n) => (n > levels ? NaN : (n / levels) * top));
  }

  const painter = (stops, missing) => {
    const read = (hex) => hex.match(/.{6}/g).map((one) => [0, 2, 4].map((by) => parseInt(one.slice(by, by + 2), 16)));
    const [gray] = read(missing.slice(1));
    const tables = { sequential: read(stops.sequential), diverging: read(stops.diverging) };
    return (value, signed, top) => {
      if (Number.isNaN(value)) return gray;
      const table = signed ? tables.diverging : tables.sequential;
      const last = table.length - 1;
      const unit = value / (top || 1);
      const position = Math.min(1, Math.max(0, signed ? (unit + 1) / 2 : unit)) * last;
      const low = Math.min(last - 1, Math.floor(position));
      const [a, b] = [table[low], table[low + 1]];
      return a.map((from, i) => Math.floor(from + (b[i] - from) * (position - low) + 0.5));
    };
  };

  const linear = (n) => (n / 255 <= 0.04045 ? n / 255 / 12.92 : ((n / 255 + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ink = (rgb) => ((luminance(rgb) + 0.05) ** 2 < 1.05 * 0.05 ? "#fff" : "#000");
  const peak = (values) => values.reduce((top, v) => (Math.abs(v) > top ? Math.abs(v) : top), 0);

  function exact(value, error, signed) {
    if (Number.isNaN(value)) return "no such cell";
    const sign = value < 0 ? "−" : signed ? "+" : "";
    const text = sign + Math.abs(value).toFixed(3);
    return error == null || Number.isNaN(error) ? text : `${text} ± ${error.toFixed(3)}`;
  }

  function short(value, { signed, cell }) {
    if (Number.isNaN(value)) return "";
    if (Math.abs(value) < 0.005) return "0";
    let text = Math.abs(value).toFixed(2);
    if (cell < 30) text = text === "1.00" ? "1" : text.replace(/^0/, "");
    return (signed ? (value < 0 ? "−" : "+") : "") + text;
  }

  function table(map, color) {
    const node = make("table", "pv-heat" + (map.cell < 20 ? " pv-small" : "") + (map.signed ? " pv-signed" : ""));
    node.style.setProperty("--cell", map.cell + "px");
    node.tabIndex = 0;
    node.setAttribute("aria-label", `${map.name} ${map.head}`);
    const head = node.insertRow();
    const corner = make("td", "pv-corner", "query\u00a0↓");
    corner.append(make("br"), "key\u00a0→");
    head.append(corner);
    const header = (row, scope, text) => {
      const th = make("th");
      th.scope = scope;
      th.title = text;
      th.append(scope === "col" ? make("span", "", text) : text);
      row.append(th);
    };
    map.columns.forEach((text) => header(head, "col", text));
    map.rows.forEach((text, q) => {
      const row = node.insertRow();
      header(row, "row", text);
      map.columns.forEach((_, k) => {
        const at = q * map.columns.length + k;
        const value = map.values[at];
        const rgb = color(value, map.signed, map.top);
        const none = Number.isNaN(value);
        const minus = map.signed && value < -0.005;
        const cell = make("td", none ? "pv-none" : minus ? "pv-minus" : "", short(value, map));
        cell.style.backgroundColor = `rgb(${rgb})`;
        if (!none) cell.style.color = ink(rgb);
        cell.dataset.v = exact(value, map.errors && map.errors[at], map.signed);
        row.append(cell);
      });
    });
    return node;
  }

  function picture(map, color, width) {
    const canvas = make("canvas");
    [canvas.width, canvas.height] = [map.columns.length, map.rows.length];
    const pen = canvas.getContext("2d");
    const pixels = pen.createImageData(canvas.width, canvas.height);
    map.values.forEach((value, at) => {
      pixels.data.set([...color(value, map.signed, map.top), Number.isNaN(value) ? 0 : 255], at * 4);
    });
    pen.putImageData(pixels, 0, 0);
    const large = make("canvas");
    const times = Math.ceil(width / canvas.width);
    [large.width, large.height] = [canvas.width * times, canvas.height * times];
    const brush = large.getContext("2d");
    brush.imageSmoothingEnabled = false;
    brush.drawImage(canvas, 0, 0, large.width, large.height);
    return large.toDataURL();
  }

  const unpackAll = async (packed) => {
    const pairs = Object.entries(packed).map(async ([at, one]) => [Number(at), await unpack(one)]);
    return new Map(await Promise.all(pairs));
  };

  // Attention to the first key is left out, and the rest of each row is divided by its sum.
  function withoutFirst(values, columns, first) {
    return values.map((value, at) => {
      const [row, column] = [Math.floor(at / columns), at % columns];
      const left = 1 - (first ? first[row] : values[row * columns]);
      if (left < 1e-4 || (!first && column === 0)) return NaN;
      return (value - (first && column === 0 ? first[row] : 0)) / left;
    });
  }

  async function grid(root) {
    const spec = JSON.parse(root.dataset.maps);
    const color = painter(spec.stops, spec.missing);
    const models = await Promise.all(spec.models.map(async (model) => ({
      ...model,
      size: model.rows.length * model.columns.length,
      weights: await unpack(model.weights),
      errors: model.error && (await unpack(model.error)),
      first: model.long && (await unpack(model.long.first)),
      exact: await unpackAll(model.long ? model.long.exact : {}),
    })));
    const [left, right] = models;
    const detail = root.querySelector(".pv-detail");
    const [own, noSink] = [root.querySelector(".pv-own"), root.querySelector(".pv-no-sink")];
    const toRight = new Map(spec.links);
    const toLeft = new Map(spec.links.map(([a, b]) => [b, a]));
    const view = { query: 0.12, key: 0.12, cells: 20 };
    let windows = [];
    let chosen = { left: spec.start, right: toRight.get(spec.start) };

    const title = (model, at) => model.labels[at].split(" ")[0];
    // `pooled` maps of a long text are those of blocks, also where a head is there token by token.
    const map = (model, at, pooled = false) => {
      const exact = pooled ? undefined : model.exact.get(at);
      const cut = (all, size = model.size) => all && all.subarray(at * size, (at + 1) * size);
      const { rows, columns } = exact ? { rows: model.long.tokens, columns: model.long.tokens } : model;
      let values = exact || cut(model.weights);
      if (noSink.checked) values = withoutFirst(values, columns.length, !exact && cut(model.first, model.rows.length));
      const top = own.checked ? peak(values) : 1;
      const errors = noSink.checked ? null : cut(model.errors);
      return { ...model, rows, columns, values, errors, signed: false, top, head: title(model, at), label: model.labels[at] };
    };
    const change = (a, b, coarse = false) => {
      const pooled = coarse || !(left.exact.has(a) && right.exact.has(b));
      const [from, to] = [map(left, a, pooled), map(right, b, pooled)];
      const values = to.values.map((value, i) => value - from.values[i]);
      const [name, head] = [`${right.name} − ${left.name}`, `${to.head} − ${from.head}`];
      return { ...from, name, head, label: head, values, errors: null, signed: true, top: own.checked ? peak(values) : 1 };
    };

    const figure = (map, behind = map) => {
      const node = make("figure", "pv-map");
      const caption = make("figcaption");
      caption.append(make("b", "", map.name), " " + map.label);
      if (noSink.checked) caption.append(make("span", "pv-soft", " without the first key"));
      if (own.checked) caption.append(make("span", "pv-soft", ` to ${map.signed ? "±" : ""}${map.top.toFixed(2)}`));
      const [room, most] = right ? [310, 30] : [620, 40];
      const fit = (cells) => Math.max(9, Math.min(most, Math.floor(room / cells) - 1));
      const scroll = make("div", "pv-scroll");
      node.append(caption);
      if (map.rows.length > LARGE) node.append(overview(map, picture(behind, color, room), room, (part) => {
        part.cell = fit(part.columns.length * 1.25); // Beside the labels, as wide as the image.
        scroll.replaceChildren(table(part, color));
      }));
      else scroll.append(table({ ...map, cell: fit(map.columns.length) }, color));
      node.append(scroll);
      return node;
    };
    // A large map as an image with a window, whose cells stand below it; all windows move together.
    const overview = (map, source, room, show) => {
      const box = make("div", "pv-overview");
      const image = make("img");
      image.alt = "";
      image.src = source;
      const frame = make("div", "pv-window");
      box.append(image, frame);
      box.style.width = room + "px";
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", `${map.name} ${map.head}, ${map.rows.length} by ${map.columns.length}: arrow keys move the window, plus and minus zoom`);
      const cut = (size, at) => {
        const count = Math.min(view.cells, size);
        const start = Math.round(Math.min(size - count, Math.max(0, at * size - count / 2)));
        return [start, start + count];
      };
      windows.push(() => {
        const [[top, bottom], [from, to]] = [cut(map.rows.length, view.query), cut(map.columns.length, view.key)];
        const part = { ...map, rows: map.rows.slice(top, bottom), columns: map.columns.slice(from, to) };
        const take = (all) => all && part.rows.flatMap((_, q) => [...all.subarray((top + q) * map.columns.length + from, (top + q) * map.columns.length + to)]);
        show({ ...part, values: take(map.values), errors: take(map.errors) });
        const percent = (n, size) => (100 * n) / size + "%";
        frame.style.inset = `${percent(top, map.rows.length)} auto auto ${percent(from, map.columns.length)}`;
        frame.style.width = percent(to - from, map.columns.length);
        frame.style.height = percent(bottom - top, map.rows.length);
      });
      const point = (event) => {
        const place = box.getBoundingClientRect();
        look((event.clientY - place.top) / place.height, (event.clientX - place.left) / place.width);
      };
      box.addEventListener("pointerdown", (event) => {
        box.setPointerCapture(event.pointerId);
        point(event);
      });
      box.addEventListener("pointermove", (event) => event.buttons && point(event));
      box.addEventListener("keydown", (event) => {
        const zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
        const step = view.cells / 4 / map.rows.length;
        const by = { ArrowLeft: [0, -step], ArrowRight: [0, step], ArrowUp: [-step, 0], ArrowDown: [step, 0] }[event.key];
        if (!zoom && !by) return;
        event.preventDefault();
        if (zoom) view.cells = Math.min(LARGE, Math.max(10, Math.round(view.cells * zoom)));
        look(view.query + (by ? by[0] : 0), view.key + (by ? by[1] : 0));
      });
      return box;
    };
    const look = (query, key) => {
      const inside = (at) => Math.min(1, Math.max(0, at));
      [view.query, view.key] = [inside(query), inside(key)];
      for (const update of windows) update();
    };
    const absent = (model) => make("p", "pv-absent", `No partner in ${model.name}`);

    const enlarge = () => {
      const { left: a, right: b } = chosen;
      windows = [];
      const row = make("div", "pv-maps");
      row.append(a === undefined ? absent(left) : figure(map(left, a), map(left, a, true)));
      if (right) row.append(b === undefined ? absent(right) : figure(map(right, b), map(right, b, true)));
      if (spec.change && a !== undefined && b !== undefined) row.append(figure(change(a, b), change(a, b, true)));
      detail.replaceChildren(row);
      look(view.query, view.key);
    };
    const mark = () => {
      const selected = { left: chosen.left, right: chosen.right, change: chosen.left === undefined ? undefined : chosen.right };
      for (const thumb of root.querySelectorAll(".pv-thumb")) {
        const at = selected[thumb.closest("[data-panel]").dataset.panel];
        thumb.setAttribute("aria-pressed", String(Number(thumb.dataset.at) === at));
      }
    };
    const choose = (panel, at) => {
      chosen = panel === "left" ? { left: at, right: toRight.get(at) } : { left: toLeft.get(at), right: at };
      mark();
      enlarge();
    };
    const recolor = () => {
      for (const thumb of root.querySelectorAll(".pv-thumb")) {
        const [panel, at] = [thumb.closest("[data-panel]").dataset.panel, Number(thumb.dataset.at)];
        const image = thumb.querySelector("img");
        image.dataset.same ??= image.src;
        if (!own.checked && !noSink.checked) image.src = image.dataset.same;
        else if (panel !== "change") image.src = picture(map(panel === "left" ? left : right, at, true), color, image.width);
        else if (toLeft.has(at)) image.src = picture(change(toLeft.get(at), at, true), color, image.width);
      }
      for (const end of root.querySelectorAll(".pv-key > i")) {
        end.dataset.same ??= end.textContent;
        end.textContent = own.checked ? end.dataset.same.replace("1", "max") : end.dataset.same;
      }
      enlarge();
    };

    root.addEventListener("click", (event) => {
      const thumb = event.target.closest(".pv-thumb");
      if (thumb) thumb.focus();
    });
    root.addEventListener("focusin", (event) => {
      const thumb = event.target.closest(".pv-thumb");
      if (!thumb) return;
      const panel = thumb.closest("[data-panel]");
      for (const other of panel.querySelectorAll(".pv-thumb")) other.tabIndex = other === thumb ? 0 : -1;
      choose(panel.dataset.panel, Number(thumb.dataset.at));
    });
    root.addEventListener("keydown", (event) => {
      const thumb = event.target.closest(".pv-thumb");
      if (!thumb) return;
      const all = [...thumb.closest("[data-panel]").querySelectorAll(".pv-thumb")];
      const heads = thumb.closest("tr").querySelectorAll(".pv-thumb").length;
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -heads, ArrowDown: heads, Home: -all.length, End: all.length };
      if (!(event.key in by)) return;
      event.preventDefault();
      const at = all.indexOf(thumb) + by[event.key];
      const next = event.key === "Home" ? all[0] : event.key === "End" ? all[all.length - 1] : all[at];
      if (next) next.focus();
    });
    for (const box of [own, noSink]) box.addEventListener("change", recolor);
    mark();
    if (!spec.plain) enlarge();
    root.classList.add("pv-ready");
  }

  function hover(root) {
    const tip = make("div", "pv-tip");
    tip.setAttribute("role", "status");
    tip.hidden = true;
    root.append(tip);
    let at = null;
    const show = (cell) => {
      if (at) at.classList.remove("pv-at");
      at = cell;
      tip.hidden = !cell;
      if (!cell) return;
      cell.classList.add("pv-at");
      const [row, column] = [cell.closest("tr").cells[0], cell.closest("table").rows[0].cells[cell.cellIndex]];
      tip.replaceChildren(
        make("bdi", "", row.textContent), " → ", make("bdi", "", column.textContent), ": ",
        make("b", "", cell.dataset.v),
      );
      const box = cell.getBoundingClientRect();
      const left = Math.min(box.right + 8, innerWidth - tip.offsetWidth - 8);
      const above = box.top - tip.offsetHeight - 6;
      tip.style.left = Math.max(8, left) + "px";
      tip.style.top = (above < 4 ? box.bottom + 6 : above) + "px";
    };
    root.addEventListener("pointerover", (event) => show(event.target.closest("td[data-v]")));
    root.addEventListener("pointerleave", () => show(null));
    root.addEventListener("focusout", () => show(null));
    addEventListener("scroll", () => show(null), { passive: true });
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show(null);
      const heat = event.target.closest(".pv-heat");
      const by = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!heat || !by) return;
      event.preventDefault();
      const here = at && heat.contains(at) ? [at.closest("tr").rowIndex, at.cellIndex] : null;
      const row = heat.rows[here ? here[0] + by[0] : 1];
      const cell = row && row.cells[here ? here[1] + by[1] : 1];
      if (cell && cell.dataset.v) show(cell);
    });
  }

  // Steps of a walk-through: one at a time, by buttons, by arrow keys on them, or played.
  function walk(root) {
    const steps = [...root.querySelectorAll(".pv-step")];
    const bar = make("div", "pv-walkbar");
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "Steps");
    const press = (text, act) => {
      const button = make("button", "", text);
      button.type = "button";
      button.addEventListener("click", act);
      bar.append(button);
      return button;
    };
    let [now, timer, every] = [0, 0, false];
    const show = (to) => {
      now = Math.min(steps.length - 1, Math.max(0, to));
      steps.forEach((step, at) => step.toggleAttribute("data-off", !every && at !== now));
      dots.forEach((dot, at) => dot.setAttribute("aria-current", at === now ? "step" : "false"));
      [back.disabled, next.disabled] = [now === 0, now === steps.length - 1];
      place.textContent = every ? "All steps" : `Step ${now + 1} of ${steps.length}`;
      if (now === steps.length - 1) stop();
    };
    const stop = () => {
      clearInterval(timer);
      timer = 0;
      play.textContent = "Play";
    };
    const go = (to) => {
      stop();
      show(to);
    };
    const back = press("Back", () => go(now - 1));
    const dots = steps.map((step, at) => {
      const dot = press(String(at + 1), () => go(at));
      dot.setAttribute("aria-label", step.querySelector("h2").textContent);
      return dot;
    });
    const next = press("Next", () => go(now + 1));
    const play = press("Play", () => {
      if (timer) return stop();
      if (now === steps.length - 1) show(0);
      timer = setInterval(() => show(now + 1), 6000);
      play.textContent = "Pause";
    });
    const all = press("All steps", () => {
      every = !every;
      all.setAttribute("aria-pressed", every);
      go(now);
    });
    all.setAttribute("aria-pressed", "false");
    const place = make("span", "pv-place");
    place.setAttribute("role", "status");
    bar.append(place);
    bar.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by) return;
      event.preventDefault();
      go(now + by);
    });
    root.prepend(bar);
    root.addEventListener("click", (event) => {
      const button = event.target.closest(".pv-try");
      if (button) attempt(button);
    });
    show(0);
  }

  // An intervention that is clicked: the reply in the drawing becomes what the model said.
  function attempt(button) {
    const model = button.closest(".pv-model");
    const pressed = button.getAttribute("aria-pressed") === "true";
    const replies = model.querySelectorAll(".pv-reply text");
    for (const reply of replies) {
      reply.dataset.same ??= reply.textContent;
      reply.textContent = reply.dataset.same;
      reply.closest(".pv-reply").classList.remove("pv-changed");
    }
    for (const other of model.querySelectorAll(".pv-try")) other.setAttribute("aria-pressed", "false");
    const reply = replies[Number(button.dataset.reply)];
    if (pressed || !reply) return;
    button.setAttribute("aria-pressed", "true");
    reply.textContent = button.dataset.says;
    reply.closest(".pv-reply").classList.add("pv-changed");
  }

  // A circuit: a path, an edge or a node under the mouse or with the focus stands out, with evidence.
  function circuit(root) {
    const line = root.querySelector(".pv-evidence");
    const rest = line.textContent;
    const wires = [...root.querySelectorAll(".pv-wire")];
    const rows = [...root.querySelectorAll("tr[data-edges]")];
    const edge = (wire) => wire.getAttribute("class").match(/pv-e(\d+)/)[1];
    const says = (group) => group.querySelector("title").textContent;
    const along = (row) => row.dataset.edges.split(" ");
    let kept = null;

    const light = (edges, chosen, text) => {
      for (const wire of wires) wire.classList.toggle("pv-lit", edges.includes(edge(wire)));
      for (const row of rows) row.classList.toggle("pv-lit", row === chosen);
      root.classList.toggle("pv-lighting", Boolean(chosen));
      line.textContent = text;
    };
    const show = (part) => {
      if (!part) return light([], null, rest);
      if (part.matches(".pv-node")) return light([], null, says(part));
      if (part.matches(".pv-wire")) {
        const own = rows.find((row) => along(row).includes(edge(part)));
        light(own ? along(own) : [], null, says(part));
        if (own) own.classList.add("pv-lit");
        return;
      }
      const texts = along(part).map((number) => says(wires.find((wire) => edge(wire) === number)));
      light(along(part), part, texts.join("\n"));
    };
    const found = (event) => event.target.closest(".pv-wire, .pv-node, tr[data-edges]");
    root.addEventListener("pointerover", (event) => show(found(event) || kept));
    root.addEventListener("pointerleave", () => show(kept));
    root.addEventListener("focusin", (event) => show(found(event) || kept));
    root.addEventListener("focusout", () => show(kept));
    root.addEventListener("click", (event) => {
      const part = found(event);
      kept = part === kept ? null : part;
      show(kept);
    });
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape") show((kept = null));
    });
    root.classList.add("pv-live-ready");
  }

  // Paper has no clicks: what is folded is printed open.
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll(".pv details:not([open])")) {
      part.dataset.closed = "";
      part.open = true;
    }
  });
  addEventListener("afterprint", () => {
    for (const part of document.querySelectorAll(".pv details[data-closed]")) {
      delete part.dataset.closed;
      part.open = false;
    }
  });

  for (const root of document.querySelectorAll(".pv:not([data-ready])")) {
    root.dataset.ready = "";
    hover(root);
    root.querySelectorAll(".pv-walk").forEach(walk);
    root.querySelectorAll(".pv-traced").forEach(circuit);
    if (typeof DecompressionStream === "undefined") continue; // Old browsers keep the plain picture.
    root.querySelectorAll(".pv-grid").forEach(grid);
  }
})();
