// What moves in the report: sorting, filtering, ranking by other weights, and plots that are drawn when they are seen.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const number = (value) => (value === "inf" ? Infinity : value);
  const recipes = JSON.parse($("state").textContent).map((r) => ({ ...r, q: number(r.q) }));
  const byId = new Map(recipes.map((r) => [r.id, r]));
  const MARKS = { estimated: "~", sampled: "^" };
  let alpha = null; // null: each recipe under the weights of its own run
  let hidden = new Set();

  // Score: the same as pytest_llmslim.score.opt ----------------------------------------------------------------

  function needed(recipe, weight) {
    const names = ["q"];
    if (weight > 0) names.push("t");
    if (1 - weight > 0) names.push("e");
    return names;
  }

  function score(recipe, weight) {
    if (needed(recipe, weight).some((name) => recipe[name] === null)) return null;
    return recipe.q * (weight * (recipe.t ?? 0) + (1 - weight) * (recipe.e ?? 0));
  }

  const weightOf = (recipe) => alpha ?? recipe.alpha;
  const scoreOf = (recipe) => score(recipe, weightOf(recipe));

  function written(recipe) {
    const names = needed(recipe, weightOf(recipe));
    const methods = names.map((name) => recipe.methods[name]);
    const value = scoreOf(recipe);
    if (value === null) return methods.includes("simulated") ? "simulated" : "unmeasured";
    const mark = MARKS[["estimated", "sampled"].find((method) => methods.includes(method))] ?? "";
    return mark + figures(value);
  }

  function figures(value) {
    if (!Number.isFinite(value)) return "inf";
    if (value >= 0.1 && value < 100) return value.toFixed(3);
    return value >= 100 && value < 1e6 ? String(Number(value.toPrecision(3))) : value.toPrecision(3);
  }

  // As the terminal ranks: what failed last, what has no score before it, else by opt.
  function better(a, b) {
    const [x, y] = [scoreOf(a), scoreOf(b)];
    return (a.outcome === "failed") - (b.outcome === "failed") || (x === null) - (y === null) ||
      compare(x ?? 0, y ?? 0);
  }

  function compare(a, b) {
    return a < b ? -1 : a > b ? 1 : 0;
  }

  function ranked(group) {
    return recipes.filter((r) => r.group === group).sort(better);
  }

  const winner = (best) => best.find((r) => r.outcome !== "failed" && !r.control && scoreOf(r) !== null);

  // Tables -----------------------------------------------------------------------------------------------------

  function value(row, column) {
    const text = row.cells[column].dataset.value;
    if (text === undefined) return null;
    const parsed = text === "inf" ? Infinity : Number(text);
    return Number.isNaN(parsed) ? text.toLowerCase() : parsed;
  }

  function sort(table) {
    const header = all("th[aria-sort]", table.tHead).find((th) => th.getAttribute("aria-sort") !== "none");
    const sign = header.getAttribute("aria-sort") === "descending" ? -1 : 1;
    const column = header.cellIndex;
    const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
    rows.sort(([a], [b]) => (a === null) - (b === null) || sign * compare(a, b));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }

  function click(button) {
    const header = button.closest("th");
    const was = header.getAttribute("aria-sort");
    all("th[aria-sort]", header.parentElement).forEach((th) => th.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", was === "ascending" ? "descending" : "ascending");
    sort(header.closest("table"));
  }

  function rank(table) {
    const order = ranked(table.dataset.group);
    const best = winner(order);
    const places = new Map(order.map((recipe, i) => [recipe.id, i + 1]));
    for (const row of table.tBodies[0].rows) {
      const recipe = byId.get(row.dataset.record);
      put(row.querySelector(".rank"), String(places.get(recipe.id)), places.get(recipe.id));
      put(row.querySelector(".opt"), written(recipe), scoreOf(recipe));
      row.classList.toggle("best", recipe === best);
    }
    sort(table);
  }

  function put(cell, text, sortedBy) {
    cell.textContent = text;
    if (sortedBy === null) delete cell.dataset.value;
    else cell.dataset.value = sortedBy === Infinity ? "inf" : sortedBy;
  }

  // Filter -----------------------------------------------------------------------------------------------------

  function filter() {
    const text = $("find").value.trim().toLowerCase();
    const outcomes = new Set(all("input[name=outcome]:checked").map((box) => box.value));
    const fits = (recipe) => recipe.name.toLowerCase().includes(text) && outcomes.has(recipe.outcome) &&
      ["model", "device"].every((name) => !$(name)?.value || $(name).value === recipe[name]);
    hidden = new Set(recipes.filter((recipe) => !fits(recipe)).map((recipe) => recipe.id));
    all("[data-record]").forEach((each) => { each.hidden = hidden.has(each.dataset.record); });
    all(".group").forEach((group) => { group.hidden = !group.querySelector("[data-record]:not([hidden])"); });
    redraw();
    say(`${recipes.length - hidden.size} of ${recipes.length} recipes shown.`);
  }

  // Weights ----------------------------------------------------------------------------------------------------

  function weigh(chosen) {
    alpha = chosen;
    const shown = chosen ?? recipes[0].alpha;
    $("alpha").value = shown;
    $("alpha").setAttribute("aria-valuetext", `time ${shown.toFixed(2)}, energy ${(1 - shown).toFixed(2)}`);
    $("alpha-shown").textContent = shown.toFixed(2);
    $("beta-shown").textContent = (1 - shown).toFixed(2);
    all(".presets button").forEach((button) => {
      const own = button.id === "reset" ? alpha === null : alpha === Number(button.dataset.alpha);
      button.setAttribute("aria-pressed", own);
    });
    all("table.recipes").forEach(rank);
    all("[data-best]").forEach((each) => {
      each.hidden = alpha === null;
      each.textContent = told(each.dataset.best);
    });
    redraw();
    const models = all("table.recipes").map((table) => told(table.dataset.group, true));
    say(`Time ${shown.toFixed(2)}, energy ${(1 - shown).toFixed(2)}. ${models.join(" ")}`);
  }

  function told(group, named) {
    const best = winner(ranked(group));
    const where = named ? `${recipes.find((r) => r.group === group).model}: ` : "For your weights: ";
    if (!best) return `${where}no recipe has a score.`;
    const than = scoreOf(best) < 1 ? "" : ", no better than the reference (1)";
    return `${where}${best.name} with opt ${written(best)}${than}.`;
  }

  let saying;
  function say(text) { // once the hand rests, so that a screen reader says the last state only
    clearTimeout(saying);
    saying = setTimeout(() => { $("status").textContent = text; }, 300);
  }

  // Plots ------------------------------------------------------------------------------------------------------

  const known = new Map();
  function figure(id) {
    if (!known.has(id)) known.set(id, JSON.parse($(`figure-${id}`).textContent));
    return known.get(id);
  }

  const kept = (list, keep) => (Array.isArray(list) ? list.filter((_, i) => keep[i]) : list);

  // Without the recipes that are filtered away, and with what the chosen weights add.
  function current(trace, of) {
    const ids = trace.customdata;
    if (trace.name === "best") return { ...trace, ...ring(of) };
    if (trace.name === "front") { // the ring has a name of its own
      const text = ring(of).text?.[0];
      return { ...trace, text: trace.text.map((name) => (text === `<b>${name}</b>` ? "" : name)) };
    }
    if (!ids) return trace;
    const keep = ids.map((id) => !hidden.has(id));
    const y = trace.name === "chosen" ? ids.map((id) => finite(scoreOf(byId.get(id)))) : trace.y;
    const found = { ...trace, x: kept(trace.x, keep), y: kept(y, keep), customdata: kept(ids, keep),
      text: kept(trace.text, keep) };
    for (const name of ["error_x", "error_y"]) {
      const error = trace[name];
      if (error) found[name] = { ...error, array: kept(error.array, keep), arrayminus: kept(error.arrayminus, keep) };
    }
    return found;
  }

  const finite = (found) => (Number.isFinite(found) ? found : null);

  function ring(of) {
    const points = of.data.filter((trace) => trace.customdata && trace.name !== "best")
      .flatMap((trace) => trace.customdata.map((id, i) => ({ id, x: trace.x[i], y: trace.y[i], text: trace.text[i] })));
    if (!points.length) return {};
    const best = winner(ranked(byId.get(points[0].id).group).filter((r) => !hidden.has(r.id)));
    const point = points.filter(({ id }) => id === best?.id);
    return { x: point.map(({ x }) => x), y: point.map(({ y }) => y), text: point.map(({ text }) => `<b>${text}</b>`) };
  }

  function themed(of, canvas) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim() || style.getPropertyValue("--ink").trim();
    const narrow = canvas.clientWidth < 480;
    const data = of.data.map((trace) => {
      const own = colour(trace.meta);
      const soft = { color: `${own}88` };
      const mode = narrow && trace.name === "front" ? "lines" : trace.mode; // names would cover each other
      return { ...trace, mode, marker: { ...trace.marker, color: own }, line: { ...trace.line, color: own },
        error_x: trace.error_x && { ...trace.error_x, ...soft }, error_y: trace.error_y && { ...trace.error_y, ...soft },
        textfont: { color: colour("ink"), size: 11 }, showlegend: !["best", "front"].includes(trace.name) };
    });
    const axis = (found) => ({ gridcolor: colour("grid"), linecolor: colour("line"), zeroline: false, automargin: true,
      fixedrange: narrow, ...found, title: { font: { size: 12 }, standoff: 12, ...found?.title } });
    const layout = { ...of.layout, xaxis: axis(of.layout.xaxis), yaxis: axis(of.layout.yaxis),
      shapes: (of.layout.shapes ?? []).map((shape) => ({ ...shape, line: { ...shape.line, color: colour("muted") } })),
      annotations: (of.layout.annotations ?? []).map((note) => ({ ...note, bgcolor: colour("card") })),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: "closest",
      font: { family: "system-ui, sans-serif", size: 12, color: colour("ink") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, margin: { l: 48, r: 12, t: 12, b: 44 } };
    return { data, layout };
  }

  function draw(canvas) {
    const id = canvas.dataset.figure;
    const raw = figure(id);
    const of = { data: raw.data.map((trace) => current(trace, raw)), layout: { ...raw.layout } };
    if (id.endsWith("-scores")) order(of, id.split("-")[0]);
    const { data, layout } = themed(of, canvas);
    Plotly.react(canvas, data, layout, { displayModeBar: false, responsive: true });
    if (!canvas.dataset.drawn) {
      canvas.dataset.drawn = "yes";
      canvas.on("plotly_click", ({ points }) => { if (points[0]?.customdata) open(points[0].customdata); });
    }
  }

  function order(of, group) {
    const names = new Map(of.data[0].customdata.map((id, i) => [id, of.data[0].x[i]]));
    const sorted = ranked(group).map((recipe) => names.get(recipe.id)).filter((name) => name !== undefined);
    of.layout.xaxis = { ...of.layout.xaxis, categoryarray: sorted };
    of.layout.annotations = of.layout.annotations.filter((note) => sorted.includes(note.x));
  }

  const redraw = () => all(".canvas[data-drawn]").filter((canvas) => canvas.clientWidth).forEach(draw);

  function rows(id) {
    const raw = figure(id);
    const title = (axis) => raw.layout[axis].title?.text ?? "recipe";
    const head = ["series", title("xaxis"), title("yaxis")];
    const point = raw.data.some((trace) => trace.customdata && trace.type === "scatter" && trace.text);
    if (point) head.splice(1, 0, "recipe");
    const body = raw.data.filter((trace) => !["front", "best"].includes(trace.name)).flatMap((trace) =>
      current(trace, raw).x.map((x, i) => {
        const now = current(trace, raw);
        const name = now.customdata ? byId.get(now.customdata[i]).name : trace.text?.[i].replace("<br>", " ");
        const cells = [trace.name, point || !name ? x : name, now.y[i]];
        if (point) cells.splice(1, 0, name);
        return cells;
      }));
    return [head, body];
  }

  function tabulate(details) {
    const id = details.closest("figure").querySelector(".canvas").dataset.figure;
    const table = document.createElement("table");
    const [head, body] = rows(id);
    const line = (cells, tag, into) => {
      const row = into.insertRow();
      cells.forEach((cell) => {
        const made = document.createElement(tag);
        made.textContent = typeof cell === "number" ? String(Number(cell.toPrecision(5))) : cell ?? "-";
        if (tag === "th") made.scope = "col";
        row.append(made);
      });
    };
    line(head, "th", table.createTHead());
    const into = table.createTBody();
    body.forEach((cells) => line(cells, "td", into));
    details.querySelector(".scroll").replaceChildren(table);
  }

  // Details ----------------------------------------------------------------------------------------------------

  function open(id) {
    const details = $(id);
    if (details?.tagName !== "DETAILS") return;
    details.open = true;
    details.querySelector("summary").focus({ preventScroll: true });
    details.scrollIntoView({ block: "start" });
  }

  // Events -----------------------------------------------------------------------------------------------------

  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    draw(entry.target); // again when it comes back: weights, filter or theme may be others
  }), { rootMargin: "200px" });
  all(".canvas").forEach((canvas) => seen.observe(canvas));
  all("thead button").forEach((button) => button.addEventListener("click", () => click(button)));
  all("a[href^='#']").forEach((link) => link.addEventListener("click", (event) => {
    if ($(link.hash.slice(1))?.tagName !== "DETAILS") return;
    event.preventDefault();
    history.replaceState(null, "", link.hash);
    open(link.hash.slice(1));
  }));
  all("select[data-plot]").forEach((select) => select.addEventListener("change", () => {
    const canvas = $(select.dataset.plot);
    const scope = canvas.closest("figure");
    canvas.dataset.figure = select.value;
    all(".away", scope).forEach((note) => { note.hidden = note.dataset.of !== select.value; });
    canvas.setAttribute("aria-label", `${select.selectedOptions[0].text}. As numbers in the table below.`);
    draw(canvas);
    all(".as-table[open]", scope).forEach(tabulate);
  }));
  all(".panel").forEach((details) => details.addEventListener("toggle", () => {
    if (details.open) all(".canvas", details).forEach(draw);
  }));
  all(".as-table").forEach((details) => details.addEventListener("toggle", () => details.open && tabulate(details)));
  if (recipes.length) {
    $("find").form.addEventListener("submit", (event) => event.preventDefault());
    $("alpha").addEventListener("input", () => weigh(Number($("alpha").value)));
    all("[data-alpha]").forEach((button) => button.addEventListener("click", () => weigh(Number(button.dataset.alpha))));
    $("reset").addEventListener("click", () => weigh(null));
    ["find", "model", "device"].forEach((id) => $(id)?.addEventListener("input", filter));
    all("input[name=outcome]").forEach((box) => box.addEventListener("change", filter));
    all("table.recipes").forEach(rank);
    $("reset").setAttribute("aria-pressed", "true");
  }
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", redraw);
  addEventListener("beforeprint", () => all(".canvas").filter((canvas) => canvas.clientWidth).forEach(draw));
  if (location.hash) open(location.hash.slice(1));
})();
