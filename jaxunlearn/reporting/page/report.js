"use strict";
// Draws the charts from the page's data, and shows the sample that is selected.
const { data, charts, texts } = JSON.parse(document.getElementById("payload").textContent);
const rows = {};
for (const [name, table] of Object.entries(data)) {
  rows[name] = table.rows.map((row) => Object.fromEntries(table.columns.map((c, i) => [c, row[i]])));
}
for (const point of rows.points || []) {
  const text = texts[point.sample];
  if (text) { point.question = text.question; point.answer = text.answer; }
}
const views = {};
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const state = { sample: null, objective: null, step: null, hidden: [] };
// Where many samples have layers and tokens, the page holds those of a part of them.
const detailed = new Set([...(rows.profiles || []), ...(rows.tokens || [])].map((r) => r.sample));
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function config() {
  const ink = color("--ink"), line = color("--line");
  return {
    background: "transparent", view: { stroke: line }, style: { cell: { stroke: line } },
    axis: {
      labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
    },
    legend: { labelColor: ink, titleColor: ink, labelFontSize: 12, titleFontSize: 12 },
    header: { labelColor: ink, titleColor: ink },
    title: { color: ink }, text: { fill: ink },
  };
}

// The specification with every symmetric logarithm made linear.
function linear(value) {
  if (Array.isArray(value)) return value.map(linear);
  if (value === null || typeof value !== "object") return value;
  if (value.type === "symlog") { const { type, constant, ...rest } = value; return rest; }
  if (value.scale && value.scale.type === "symlog" && value.axis) {
    const { values, ...axis } = value.axis;
    value = { ...value, axis };
  }
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, linear(v)]));
}

// The specification with what the reader has chosen: in the chart that it replaces, if there is one,
// and which objectives are switched off.
function withChoices(value, view) {
  if (Array.isArray(value)) return value.map((part) => withChoices(part, view));
  if (value === null || typeof value !== "object") return value;
  const entries = Object.entries(value).map(([k, v]) => [k, withChoices(v, view)]);
  const copy = Object.fromEntries(entries);
  if (view && copy.name && copy.bind && copy.bind.input) copy.value = view.signal(copy.name);
  if (copy.name === "hidden") copy.value = state.hidden;
  return copy;
}

// Charts with columns of their own become one column where the screen is narrow.
function fitted(spec, room) {
  if (!spec.spec || room > 980) return spec;
  const narrow = structuredClone(spec);
  if (narrow.facet.column) { narrow.facet.row = narrow.facet.column; delete narrow.facet.column; }
  if (narrow.columns) narrow.columns = 1;
  narrow.spec.width = Math.max(180, room - 190);
  return narrow;
}

async function draw(key) {
  const place = document.querySelector(`.chart[data-chart="${key}"]`);
  if (!place) return;
  const chosen = document.querySelector(`input[data-chart="${key}"]:checked`);
  const room = place.clientWidth;
  let spec = fitted(charts[key].spec, room);
  if (chosen && chosen.value === "linear") spec = linear(spec);
  const named = key === "profile" ? { profile: profile() } : rows;
  const datasets = Object.fromEntries(names(spec).map((name) => [name, named[name] || []]));
  const options = { actions: false, renderer: "svg", config: config() };
  // What stands below must not jump while the chart is replaced.
  place.style.minHeight = `${place.offsetHeight}px`;
  spec = withChoices(spec, views[key]);
  if (views[key]) views[key].finalize();
  const made = await window.embed(place, { ...spec, datasets }, options);
  views[key] = made.view;
  place.style.minHeight = "";
  if (key === "plane") followPlane(made.view);
}

function names(spec) {
  const found = new Set();
  (function walk(value) {
    if (value === null || typeof value !== "object") return;
    if (value.data && value.data.name) found.add(value.data.name);
    Object.values(value).forEach(walk);
  })(spec);
  return [...found];
}

// --- one sample -----------------------------------------------------------------------------------

function followPlane(view) {
  const steps = [...new Set(rows.points.map((p) => p.step))].sort((a, b) => a - b);
  const slider = document.querySelector('.chart[data-chart="plane"] input[type="range"]');
  const follow = () => {
    state.objective = view.signal("objective");
    state.step = steps[view.signal("place")];
    if (slider) {
      // The slider counts measurements; what it shows is the step.
      slider.setAttribute("aria-valuetext", `step ${state.step}`);
      setTimeout(() => { if (slider.nextSibling) slider.nextSibling.textContent = state.step; }, 0);
    }
    show(state.sample);
  };
  view.addSignalListener("objective", follow);
  view.addSignalListener("place", follow);
  view.addEventListener("click", (_, item) => {
    if (item && item.datum && item.datum.sample !== undefined) show(item.datum.sample);
  });
  follow();
}

function profile() {
  return (rows.profiles || [])
    .filter((r) => r.objective === state.objective && r.step === state.step && r.sample === state.sample)
    .flatMap((r) => [
      { layer: r.layer, risk: "Dᵤ", value: r.unlearn }, { layer: r.layer, risk: "Dᵣ", value: r.retain },
    ]);
}

function show(sample) {
  state.sample = sample;
  document.getElementById("pick").value = String(sample);
  const text = texts[sample];
  document.getElementById("question").textContent = text ? text.question : "";
  document.getElementById("answer").textContent = text ? text.answer : "";
  showTokens(text);
  if (views.plane) views.plane.signal("chosen", sample).runAsync();
  draw("profile");
}

function showTokens(text) {
  const place = document.getElementById("tokens");
  place.replaceChildren();
  if (detailed.size && !detailed.has(state.sample)) {
    place.textContent = "The page does not hold the layers and tokens of this sample; it holds those of the ones with • in the list.";
    return;
  }
  const ours = (rows.tokens || []).filter((r) => r.objective === state.objective && r.sample === state.sample);
  if (!ours.length || !text) return;
  // The effects of tokens may have been recorded at other steps: the nearest one is taken.
  const near = ours.reduce((a, b) => (Math.abs(b.step - state.step) < Math.abs(a.step - state.step) ? b : a));
  const parts = [
    ["PG-effect on Dᵤ", near.unlearn, true], ["PG-effect on Dᵣ", near.retain, true],
    ["weight in the objective", near.weight, false],
  ];
  for (const [title, values, signed] of parts) {
    if (values.every((v) => v === null)) continue;
    const block = document.createElement("div");
    block.className = "tokens";
    const head = document.createElement("h3");
    head.textContent = `${title}, ${state.objective}, step ${near.step}`;
    block.append(head);
    const largest = Math.max(...values.map((v) => Math.abs(v || 0))) || 1;
    values.forEach((value, i) => {
      const span = document.createElement("span");
      span.textContent = text.tokens[i] === undefined || text.tokens[i] === "" ? "·" : text.tokens[i];
      const share = Math.sqrt(Math.abs(value || 0) / largest) * 0.7;
      const rgb = !signed ? "0,114,178" : value < 0 ? "213,94,0" : "0,158,115";
      span.style.backgroundColor = `rgba(${rgb},${share.toFixed(3)})`;
      span.title = `${title}: ${value === null ? "not finite" : value}`;
      block.append(span);
    });
    block.dir = "auto";
    place.append(block);
  }
}

function fillPicker() {
  const pick = document.getElementById("pick");
  if (!pick) return;
  for (const sample of [...new Set(rows.points.map((p) => p.sample))].sort((a, b) => a - b)) {
    const option = document.createElement("option");
    const question = texts[sample] ? texts[sample].question : "";
    option.value = String(sample);
    const mark = detailed.size && detailed.size < Object.keys(texts).length && detailed.has(sample) ? "• " : "";
    option.textContent = `${mark}${sample}: ${question.length > 90 ? question.slice(0, 90) + "…" : question}`;
    pick.append(option);
  }
  pick.addEventListener("change", () => show(Number(pick.value)));
  const first = rows.points[0];
  Object.assign(state, { sample: first.sample, objective: first.objective, step: first.step });
}

// --- data, scales, themes -------------------------------------------------------------------------

function csv(name) {
  const quote = (v) => (v === null ? "" : `"${String(Array.isArray(v) ? JSON.stringify(v) : v).replaceAll('"', '""')}"`);
  const { columns, rows: lines } = data[name];
  return [columns, ...lines].map((line) => line.map(quote).join(",")).join("\n");
}

for (const link of document.querySelectorAll("a.data")) {
  link.addEventListener("click", () => {
    link.href = URL.createObjectURL(new Blob([csv(link.dataset.name)], { type: "text/csv" }));
  });
}
for (const input of document.querySelectorAll("input[data-chart]")) {
  input.addEventListener("change", () => draw(input.dataset.chart));
}
for (const box of document.querySelectorAll("#toggles input")) {
  box.addEventListener("change", () => {
    const boxes = [...document.querySelectorAll("#toggles input")];
    state.hidden = boxes.filter((b) => !b.checked).map((b) => b.value);
    for (const view of Object.values(views)) {
      if ("hidden" in view.getState().signals) view.signal("hidden", state.hidden).runAsync();
    }
  });
}
async function drawAll() {
  for (const key of Object.keys(charts)) await draw(key);
  document.body.dataset.ready = "true";
}
dark.addEventListener("change", drawAll);
let resizing;
window.addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(drawAll, 250); });
fillPicker();
drawAll();
