"use strict";
// Plots: Plotly draws what data.js has computed. Colours are those of the figures; on dark paper those that would be lost are lightened.

const dark = matchMedia("(prefers-color-scheme: dark)");
const still = matchMedia("(prefers-reduced-motion: reduce)");
const paint = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const channels = (color) => [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16));

function luminance(rgb) {
  const [r, g, b] = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function legible(color) {
  let rgb = channels(color);
  if (!dark.matches) return color;
  const paper = luminance(channels(paint("--paper")));
  while ((luminance(rgb) + 0.05) / (paper + 0.05) < 3.5) rgb = rgb.map((c) => Math.min(255, Math.round(c + (255 - c) * 0.1) + 1));
  return "#" + rgb.map((c) => c.toString(16).padStart(2, "0")).join("");
}

const escaped = (text) => String(text).replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

function hover(point, name, where) {
  const runs = finished(point.setting);
  const seeds = point.seeds.map(([seed, value], i) => `seed ${escaped(seed)}: ${number(value, name)} · ${escaped(runs[i].name)}`);
  return [
    `<b>${escaped(point.setting.label)}</b>`,
    escaped(where),
    `${withDeviation(point, name)} (n=${point.n})`,
    ...seeds.slice(0, 5),
  ].join("<br>");
}

function axisLayout(title, extra) {
  const line = paint("--line");
  return {
    title: { text: title, standoff: 8 },
    gridcolor: line,
    linecolor: line,
    zeroline: false,
    automargin: true,
    tickcolor: line,
    ...extra,
  };
}

function layout(x, y, narrow) {
  const ink = paint("--ink");
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: ink, size: 13, family: getComputedStyle(document.body).fontFamily },
    margin: { l: narrow ? 44 : 60, r: 12, t: 10, b: 48 },
    showlegend: false,
    hovermode: "closest",
    dragmode: narrow ? false : "zoom",
    xaxis: x,
    yaxis: y,
    hoverlabel: { bgcolor: paint("--card"), bordercolor: paint("--field"), font: { color: ink, size: 12 }, align: "left", namelength: 0 },
    transition: { duration: still.matches ? 0 : 150 },
  };
}

// How an axis of settings is laid out: numbers where all of its values are, else the values one beside the other.
function positions(axis) {
  const numbers = axis.values.map((value) => value.number);
  const numeric = axis.values.length > 1 && numbers.every((value) => value !== null);
  const log = numeric && axis.log && numbers.every((value) => value > 0);
  const places = numeric ? numbers : axis.values.map((_, i) => i);
  const ticks = { tickmode: "array", tickvals: places, ticktext: axis.values.map((value) => escaped(value.text)) };
  return { at: (i) => places[i], layout: { type: log ? "log" : "linear", minor: { ticks: "" }, ...ticks } };
}

// Marks of the figures, in their order: curves of one figure differ by them, too.
const SYMBOLS = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x", "star"];
const SIGNS = ["●", "■", "▲", "◆", "▼", "✚", "✖", "★"];

// The axis that dashes tell apart: the first that neither colour, panels nor x tell, if dashes are enough for its values.
function dashes(section, settings, choice) {
  for (const axis of section.varying) {
    const present = [...new Set(settings.map((setting) => setting.at[axis]))].sort((one, other) => one - other);
    const told = [choice.color, choice.facet, choice.x].includes(axis);
    if (!told && present.length > 1 && present.length <= 3)
      return { axis, present, of: (i) => ["solid", "dash", "dot"][present.indexOf(i)] };
  }
  return null;
}

function lines(section, settings, choice, whole) {
  const axis = section.axes[choice.x],
    place = axis && positions(axis);
  const traces = [],
    points = [];
  const dashed = dashes(
    section,
    visible(section).filter((setting) => finished(setting).length),
    choice,
  );
  const palette = section.axes[choice.color]?.values;
  const all = series(section, settings, choice),
    crowded = all.reduce((sum, each) => sum + each.points.length, 0) > 900;
  for (const each of all) {
    const color = legible(palette ? palette[each.first.at[choice.color]].color : "#0072B2");
    const x = each.points.map((point) => (axis ? place.at(point.x) : point.x));
    const where = (point) =>
      axis ? `${axis.title}: ${axis.values[point.x].text}` : `${content.measures[choice.x].title}: ${number(point.x, choice.x)}`;
    if (choice.view === "curves" && each.points[0].deviation !== null) {
      const edge = (sign) => each.points.map((point) => point.mean + sign * point.deviation);
      traces.push({
        x: [...x, ...x.toReversed()],
        y: [...edge(1), ...edge(-1).reverse()],
        fill: "toself",
        fillcolor: color + "33",
        line: { width: 0 },
        mode: "lines",
        hoverinfo: "skip",
      });
      points.push([]);
    }
    const bars = {
      type: "data",
      array: each.points.map((point) => point.deviation ?? 0),
      color,
      thickness: 1.2,
      width: 4,
      visible: each.points.some((point) => point.deviation !== null),
    };
    const many = each.points.length > 15,
      every = crowded ? Math.ceil(each.points.length / 6) : 1;
    const symbol = palette ? SYMBOLS[each.first.at[choice.color] % SYMBOLS.length] : "circle";
    const first = Math.min(each.first.at[choice.color] ?? 0, every - 1) % every; // of many points few have a mark, not all at the same
    const sizes = each.points.map((_, i) => (i % every === first ? (many && !crowded ? 7 : 9) : 0));
    const shape = choice.y === "J" && choice.view === "curves" ? "hv" : "linear"; // J holds until it is chosen anew
    traces.push({
      x,
      y: each.points.map((point) => point.mean),
      mode: "lines+markers",
      line: { color, width: 2, shape, dash: dashed ? dashed.of(each.first.at[dashed.axis]) : "solid" },
      marker: { color, symbol, size: sizes, opacity: 1, line: { width: 0 } },
      error_y: choice.view === "final" ? bars : undefined,
      text: each.points.map((point) => hover(point, choice.y, where(point))),
      hovertemplate: "%{text}<extra></extra>",
    });
    points.push(
      each.points.map((point) => ({
        ...point,
        said: `${point.setting.label}, ${where(point)}, ${withDeviation(point, choice.y)}, n=${point.n}`,
      })),
    );
  }
  const title = axis ? axis.title : content.measures[choice.x].title;
  return {
    traces,
    points,
    x: axisLayout(title, { ...place?.layout, ...(whole.x && !axis && { range: whole.x }) }),
    y: axisLayout(content.measures[choice.y].title, whole.y && { range: whole.y }),
  };
}

// What a setting differs in from the others, in short.
function brief(section, setting) {
  const words = section.varying.map((axis) => section.axes[axis].values[setting.at[axis]].label).join(", ");
  return words || setting.label;
}

function folded(text, width) {
  const lines = [""];
  for (const word of text.split(" "))
    (lines.at(-1) + word).length > width && lines.at(-1) ? lines.push(word) : lines.push(`${lines.pop()} ${word}`.trim());
  return lines.map(escaped).join("<br>");
}

// A dot for each setting where it reached the target; those that never did are said to.
function targets(section, settings, choice, whole) {
  const rows = series(section, settings, choice).map((each) => each.points[0]);
  const palette = section.axes[choice.color]?.values,
    title = content.measures[choice.x].title,
    aim = `${content.measures[choice.y].title.replace(/, %$/, "")} is ${choice.target} %`;
  const traces = [],
    points = [];
  rows.forEach((point, row) => {
    const color = legible(palette ? palette[point.setting.at[choice.color]].color : "#0072B2");
    const never = point.mean === null,
      lost = never || (whole.log && point.mean <= 0);
    const said = `${point.setting.label}: ${never ? `never, ${aim}` : `${title} until ${aim}: ${withDeviation(point, choice.x)}`}, n=${point.n}`;
    const shape = lost
      ? { mode: "text", text: [never ? "never" : "0"], textposition: never ? "middle left" : "middle right", textfont: { color } }
      : { mode: "markers", marker: { color, size: 9 } };
    const bars = {
      type: "data",
      array: [point.deviation ?? 0],
      color,
      thickness: 1.2,
      width: 4,
      visible: !lost && point.deviation !== null,
    };
    const at = never ? whole.end : lost ? whole.start : point.mean;
    traces.push({
      x: [at],
      y: [row],
      ...shape,
      error_x: bars,
      hovertext: [hover(point, choice.x, `${title} until ${aim}`)],
      hovertemplate: "%{hovertext}<extra></extra>",
    });
    points.push([{ ...point, said }]);
  });
  const narrow = innerWidth <= 640,
    names = rows.map((point) => folded(brief(section, point.setting), narrow ? 18 : 44));
  const y = axisLayout("", {
    tickmode: "array",
    tickvals: rows.map((_, i) => i),
    ticktext: names,
    range: [rows.length - 0.4, -0.6],
    showgrid: false,
  });
  const decades = whole.log
    ? Array.from({ length: 40 }, (_, i) => [1, 2, 5].map((digit) => +`${digit}e${i - 20}`))
        .flat()
        .filter((tick) => tick >= whole.start && tick <= whole.end)
    : [];
  const every = Math.ceil(decades.length / (narrow ? 4 : 9)),
    ticks = decades.filter((_, i) => i % every === 0);
  const marked =
    ticks.length > 1
      ? { tickmode: "array", tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en", { maximumSignificantDigits: 3 })) }
      : {};
  const range = whole.log ? [Math.log10(whole.start), Math.log10(whole.end)] : [whole.start, whole.end];
  return {
    traces,
    points,
    x: axisLayout(folded(title, narrow ? 18 : 60), { type: whole.log ? "log" : "linear", range, ...marked }),
    y,
    height: 100 + rows.length * (narrow ? 34 : 25),
  };
}

// How probable each client is in a round, as a step for each; dotted: all alike.
function distribution(section, [label, settings, color], whole) {
  const found = sampling(section, settings, label),
    shade = legible(color),
    floor = (p) => Math.max(p, 1e-6);
  const hovered = found.points.map(
    (point) => `<b>${escaped(label)}</b><br>client ${point.x} of ${found.clients} by probability<br>${probability(point)} (n=${point.n})`,
  );
  const line = {
    x: found.points.map((point) => point.x),
    y: found.points.map((point) => floor(point.mean)),
    mode: "lines",
    fill: "tozeroy",
    fillcolor: shade + "40",
    line: { color: shade, width: 2, shape: "hvh" },
    text: hovered,
    hovertemplate: "%{text}<extra></extra>",
  };
  const even = {
    x: [1, found.clients],
    y: [1 / found.clients, 1 / found.clients],
    mode: "lines",
    line: { color: paint("--ink"), width: 1, dash: "dot" },
    hoverinfo: "skip",
  };
  const note = {
    text: `effective: ${found.effective.toFixed(found.effective >= 9.95 ? 0 : 1)}`,
    xref: "paper",
    yref: "paper",
    x: 0.98,
    y: 0.97,
    showarrow: false,
    xanchor: "right",
    yanchor: "top",
  };
  const points = [
    found.points.map((point) => ({
      ...point,
      said: `${label}: client ${point.x} of ${found.clients} by probability, ${probability(point)}, n=${point.n}`,
    })),
    [],
  ];
  return {
    traces: [line, even],
    points,
    x: axisLayout("client, by probability"),
    y: axisLayout("probability", { type: "log", range: whole.y, exponentformat: "power" }),
    annotations: [note],
  };
}

const probability = (point) => withDeviation(point, "");
const RED_BLUE = ["#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7", "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f"];

// What clients hold, a column for each: the share of a class among its samples; or how frequent characters are, relative to all text.
function division(section, [label, settings]) {
  const held = holdings(section, settings),
    classes = held.kind !== "characters",
    power = 0.4;
  const share = (client, name) => (held.sizes[client] ? (100 * held.values[client][name]) / held.sizes[client] : 0);
  const z = held.names.map((_, name) =>
    held.values.map((_, client) => (classes ? (share(client, name) ? share(client, name) ** power : null) : held.values[client][name])),
  );
  const what = (client, name) =>
    classes
      ? `${held.values[client][name].toLocaleString("en")} of ${held.sizes[client].toLocaleString("en")} samples (${share(client, name).toFixed(1)} %)`
      : `${(2 ** held.values[client][name]).toFixed(2)} times as frequent as in all text`;
  const points = held.names.map((name, i) =>
    held.values.map((_, client) => ({
      setting: settings[0],
      group: settings,
      said: `${label}: client ${client + 1}, ${name}: ${what(client, i)}`,
    })),
  );
  const ticks = classes ? [1, 5, 20, 50, 100] : [-2, -1, 0, 1, 2];
  const narrow = innerWidth <= 640,
    place = narrow ? { orientation: "h", y: 1.02, yanchor: "bottom" } : {};
  const scale = classes ? "share of the client's samples, %" : "times as frequent as in all text";
  const bar = { title: { text: scale, side: narrow ? "top" : "right" }, tickmode: "array", thickness: 12, outlinewidth: 0, ...place };
  const trace = {
    type: "heatmap",
    z,
    x: held.values.map((_, client) => client + 1),
    hovertext: points.map((row) => row.map((point) => escaped(point.said))),
    hovertemplate: "%{hovertext}<extra></extra>",
    hoverongaps: false,
    ...(classes
      ? { colorscale: "Viridis", reversescale: true, zmin: 0, zmax: 100 ** power }
      : { colorscale: RED_BLUE.map((color, i) => [i / (RED_BLUE.length - 1), color]), zmin: -2, zmax: 2 }),
    colorbar: {
      ...bar,
      tickvals: classes ? ticks.map((tick) => tick ** power) : ticks,
      ticktext: classes ? ticks.map(String) : ["1/4", "1/2", "1", "2", "4"],
    },
  };
  const every = Math.ceil(held.names.length / 20),
    shown = held.names.map((_, i) => i).filter((i) => i % every === 0);
  const title = held.clients > held.values.length ? `client, ${held.values.length} of ${held.clients}` : "client";
  return {
    traces: [trace],
    points,
    x: axisLayout(title, { showgrid: false }),
    height: narrow ? 400 : undefined,
    y: axisLayout(classes ? "class" : "next character", {
      showgrid: false,
      tickmode: "array",
      tickvals: shown,
      ticktext: shown.map((i) => escaped(held.names[i])),
      ...(!classes && { autorange: "reversed" }),
    }),
  };
}

function map(section, settings, choice, whole) {
  const columns = section.axes[choice.x],
    rows = section.axes[choice.y];
  const found = cells(section, settings, choice);
  const blank = () => rows.values.map(() => columns.values.map(() => null));
  const z = blank(),
    text = blank(),
    hovered = blank(),
    points = rows.values.map(() => []);
  for (const cell of found) {
    const row = cell.setting.at[choice.y],
      column = cell.setting.at[choice.x];
    const where = `${columns.title}: ${columns.values[column].text}, ${rows.title}: ${rows.values[row].text}`;
    z[row][column] = cell.mean;
    text[row][column] = number(cell.mean, choice.value) + (cell.deviation === null ? "" : `<br>± ${number(cell.deviation, choice.value)}`);
    hovered[row][column] =
      cell.several.length > 1
        ? `mean of ${cell.several.length} settings<br>` +
          cell.several
            .slice(0, 8)
            .map((each) => `${escaped(each.setting.label)}: ${withDeviation(each, choice.value)} (n=${each.n})`)
            .join("<br>")
        : hover(cell, choice.value, where);
    points[row][column] = {
      ...cell,
      said:
        `${where}, ${withDeviation(cell, choice.value)}, ` +
        (cell.several.length > 1 ? `mean of ${cell.several.length} settings` : `n=${cell.n}`),
    };
  }
  const least = content.measures[choice.value].better === "min"; // darker is better, as in the figures
  const shades = least ? content.shades.toReversed() : content.shades;
  const scale = shades.map((color, i) => [i / (shades.length - 1), color]);
  const trace = {
    type: "heatmap",
    z,
    text,
    texttemplate: "%{text}",
    hovertext: hovered,
    hovertemplate: "%{hovertext}<extra></extra>",
    colorscale: scale,
    xgap: 2,
    ygap: 2,
    hoverongaps: false,
    zmin: whole.z[0],
    zmax: whole.z[1],
    colorbar: { title: { text: content.measures[choice.value].title, side: "right" }, thickness: 12, outlinewidth: 0 },
    showscale: innerWidth > 640,
  };
  const even = (axis, extra) =>
    axisLayout(axis.title, {
      tickmode: "array",
      tickvals: axis.values.map((_, i) => i),
      ticktext: axis.values.map((value) => escaped(value.text)),
      showgrid: false,
      ...extra,
    });
  const frames = best(found, choice.value).map((cell) => {
    const column = cell.setting.at[choice.x],
      row = cell.setting.at[choice.y];
    const line = { color: content.frame, width: 3 };
    return { type: "rect", x0: column - 0.5, x1: column + 0.5, y0: row - 0.5, y1: row + 0.5, line };
  });
  return { traces: [trace], points, x: even(columns), y: even(rows, { range: [rows.values.length - 0.5, -0.5] }), shapes: frames };
}

// The cells that are best by validation, all of them where they are equal, as in the figures; of cells that several settings share, none.
function best(found, value) {
  const judge = (value.startsWith("personal/") ? "personal/" : "") + (value.endsWith("loss") ? "val/loss" : "val/acc"),
    sign = content.measures[judge].better === "min" ? -1 : 1;
  const judged = found.map((cell) => [cell, final(cell.setting, judge)]).filter(([, by]) => by);
  if (judged.length < 2 || found.some((cell) => cell.several.length > 1)) return [];
  const top = Math.max(...judged.map(([, by]) => sign * by.mean));
  return judged.filter(([, by]) => Math.abs(sign * by.mean - top) <= 1e-12 * Math.abs(top)).map(([cell]) => cell);
}

// The ranges that all panels share, so that they can be compared.
function shared(section, settings, choice) {
  if (choice.view === "heat") {
    const values = settings.map((setting) => final(setting, choice.value)?.mean).filter((value) => value !== undefined);
    return { z: [Math.min(...values), Math.max(...values)] };
  }
  if (choice.view === "classes") return {};
  if (choice.view === "sampling") {
    const every = panelled(section, settings, choice.facet)
      .flatMap(([, group]) => sampling(section, group)?.points ?? [])
      .map((point) => point.mean);
    const least = Math.min(...every.filter((p) => p > 0));
    return { y: [Math.log10(Math.max(1e-6, least / 2)), Math.log10(Math.min(1.5, 6 * Math.max(...every)))] };
  }
  const points = series(section, settings, choice).flatMap((each) => each.points);
  if (choice.view === "targets") {
    const values = points.map((point) => point.mean).filter((mean) => mean !== null),
      positive = values.filter((mean) => mean > 0);
    const most = Math.max(0, ...points.map((point) => (point.mean ?? 0) + (point.deviation ?? 0))) || 1,
      log = positive.length > 0 && Math.max(...positive) > 3 * Math.min(...positive);
    return { log, start: log ? Math.min(...positive) / 1.6 : 0, end: most * (log ? 2.6 : 1.25) };
  }
  const padded = (low, high) => [low - (high - low || Math.abs(high) || 1) * 0.05, high + (high - low || Math.abs(high) || 1) * 0.05];
  const least = (values) => values.reduce((one, other) => Math.min(one, other), Infinity),
    most = (values) => values.reduce((one, other) => Math.max(one, other), -Infinity);
  if (!points.length) return {};
  return {
    x: padded(least(points.map((point) => point.x)), most(points.map((point) => point.x))),
    y: padded(
      least(points.map((point) => point.mean - (point.deviation ?? 0))),
      most(points.map((point) => point.mean + (point.deviation ?? 0))),
    ),
  };
}

async function draw(element, section, panel, choice, whole, { chosen, said }) {
  const [, settings] = panel;
  const drawn =
    {
      sampling: () => distribution(section, panel, whole),
      classes: () => division(section, panel),
      targets: () => targets(section, settings, choice, whole),
      heat: () => map(section, settings, choice, whole),
    }[choice.view]?.() ?? lines(section, settings, choice, whole);
  const narrow = innerWidth <= 640;
  if (drawn.height) element.style.height = `${drawn.height}px`;
  await Plotly.newPlot(
    element,
    drawn.traces,
    { ...layout(drawn.x, drawn.y, narrow), annotations: drawn.annotations ?? [], shapes: drawn.shapes ?? [] },
    { displaylogo: false, responsive: true, displayModeBar: false, doubleClick: "reset" },
  );
  const heat = drawn.traces[0]?.type === "heatmap";
  element.on("plotly_click", ({ points: [at] }) => {
    const point = heat ? drawn.points[at.pointNumber[0]][at.pointNumber[1]] : drawn.points[at.curveNumber][at.pointNumber];
    if (point) chosen(point);
  });
  // By keyboard: left and right along a series, up and down to the next one.
  const rows = drawn.points
    .map((row, curve) => ({ curve, places: row.map((_, i) => i).filter((i) => row[i]) }))
    .filter((row) => row.places.length);
  let row = 0,
    place = -1;
  element.tabIndex = 0;
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
    if (event.key === "Enter" && place >= 0) chosen(drawn.points[rows[row].curve][rows[row].places[place]]);
    if (!step || !rows.length) return;
    event.preventDefault();
    row = Math.min(rows.length - 1, Math.max(0, row + step[0]));
    place = Math.min(rows[row].places.length - 1, Math.max(0, place + step[1]));
    const curve = rows[row].curve,
      number = rows[row].places[place];
    said(drawn.points[curve][number].said);
    if (heat) Plotly.Fx.hover(element, [{ curveNumber: 0, pointNumber: [curve, number] }]);
    else Plotly.Fx.hover(element, [{ curveNumber: curve, pointNumber: number }]);
  });
  element.addEventListener("blur", () => Plotly.Fx.unhover(element));
}
