"use strict";
// The page: choices, what they change, and where they are kept (behind the # of the address).

const $ = (id) => document.getElementById(id);
const KEYS = ["view", "x", "y", "value", "color", "facet"];
const VIEWS = { curves: "Curves", final: "Final values", heat: "Heat map" };
let choice = {};
let hidden = {}; // by axis: the values that are not shown

const current = () => content.sections.find((section) => section.name === choice.section) ?? content.sections[0];

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

function said(text) {
  $("live").textContent = text;
}

const named = (section, names) => names.map((name) => [name, section.axes[name]?.title ?? content.measures[name].title]);

function available(section) {
  const present = new Set(section.settings.flatMap((setting) => finished(setting).flatMap((run) => Object.keys(run.columns))));
  return Object.keys(content.measures).filter((name) => present.has(name));
}

// What may be chosen for each control, as [value, text].
function options(section, view) {
  const axes = named(section, Object.keys(section.axes)), several = axes.filter(([name]) => section.axes[name].values.length > 1);
  const figures = named(section, available(section));
  const usable = several.length ? several : axes;
  return {
    view: Object.entries(VIEWS).filter(([name]) => name !== "heat" || several.length > 1),
    x: { curves: figures, final: [...usable, ...figures], heat: usable }[view],
    y: view === "heat" ? usable : figures,
    value: figures,
    color: [["", "one for all"], ...axes],
    facet: [["", "one for all"], ...several],
  };
}

// The choice with everything that is not possible replaced by what the section's own figures show, or by the first that is.
function possible(section, wanted) {
  const views = Object.keys(VIEWS), view = views.includes(wanted.view) ? wanted.view : "curves";
  const allowed = options(section, view), made = { section: section.name, view };
  if (!allowed.view.some(([name]) => name === view)) return possible(section, { ...wanted, view: "curves" });
  const axes = allowed.facet.slice(1).map(([name]) => name);
  const numeric = axes.filter((name) => section.axes[name].values.some((value) => value.number !== null));
  const lead = { curves: "epoch", final: numeric[0] ?? axes[0], heat: numeric[1] ?? axes[1] }[view];
  const usual = { x: lead, y: view === "heat" ? axes.find((name) => name !== lead) : "test/acc", value: "test/acc", facet: "" };
  usual.color = axes.find((name) => view === "curves" || name !== lead) ?? "method";
  const own = { ...usual, ...section.views[view] };
  for (const key of KEYS.slice(1)) {
    const fits = (name) => name !== undefined && allowed[key].some(([value]) => value === name);
    made[key] = [wanted[key], own[key], usual[key]].find(fits) ?? allowed[key][0]?.[0] ?? "";
  }
  if (view === "heat" && made.x === made.y) made.y = axes.find((name) => name !== made.x);
  return made;
}

function fill(select, entries, value) {
  select.replaceChildren(...entries.map(([name, text]) => new Option(text, name, false, name === value)));
}

function visible(section) {
  return section.settings.filter((setting) => Object.entries(hidden).every(([axis, values]) => !values.has(setting.at[axis])));
}

function remember() {
  const kept = new URLSearchParams(choice);
  for (const [axis, values] of Object.entries(hidden)) if (values.size) kept.set(`hide.${axis}`, [...values].join());
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  choice = kept;
  const section = current();
  if (!section) return;
  hidden = {};
  for (const name of Object.keys(section.axes)) if (kept[`hide.${name}`]) hidden[name] = new Set(kept[`hide.${name}`].split(",").map(Number));
  choice = possible(section, kept);
}

function update(spoken = true) {
  const section = current();
  document.title = `${section.title}: report`;
  document.querySelector("h1").textContent = section.title;
  $("questions").replaceChildren(...section.questions.map((text) => make("li", { textContent: text })));
  fill($("section"), content.sections.map((each) => [each.name, each.title]), section.name);
  const allowed = options(section, choice.view);
  for (const key of KEYS) fill($(key), allowed[key], choice[key]);
  $("value-label").hidden = choice.view !== "heat";
  $("color-label").hidden = choice.view === "heat";
  filters(section);
  plot(section);
  remember();
  if (spoken) said(`${$("caption").textContent}. ${$("notes").textContent}`);
}

function filters(section) {
  const boxes = section.varying.map((name) => {
    const axis = section.axes[name];
    const labels = axis.values.map((value, i) => {
      const box = make("input", { type: "checkbox", checked: !hidden[name]?.has(i), name: `${name} ${i}` });
      box.addEventListener("change", () => {
        hidden[name] ??= new Set();
        box.checked ? hidden[name].delete(i) : hidden[name].add(i);
        counted(section);
        plot(section);
        remember();
        said(`${$("shown-count").textContent}. ${$("notes").textContent}`);
      });
      return make("label", {}, box, value.text);
    });
    return make("fieldset", {}, make("legend", { textContent: axis.title }), make("div", {}, ...labels));
  });
  $("filters").replaceChildren(...boxes);
  $("shown").hidden = !boxes.length;
  counted(section);
}

function counted(section) {
  $("shown-count").textContent = `(${visible(section).length} of ${section.settings.length})`;
}

function plot(section) {
  const settings = visible(section), ended = settings.filter((setting) => finished(setting).length);
  const title = (name) => (section.axes[name] ?? content.measures[name]).title.replace(/, [^,]*$/, ""); // units are beside the axes
  const heat = choice.view === "heat";
  const about = heat ? `${title(choice.value)} of the final models, by ${title(choice.y)} and ${title(choice.x)}` : choice.view === "curves" ? `${title(choice.y)} against ${title(choice.x)}` : `${title(choice.y)} of the final models against ${title(choice.x)}`;
  $("caption").textContent = about[0].toUpperCase() + about.slice(1);
  for (const old of $("plots").querySelectorAll(".plot")) Plotly.purge(old);
  $("plots").replaceChildren();
  $("runs").hidden = true;
  const rows = tabulated(section, ended, heat);
  $("notes").textContent = notes(settings, ended, rows);
  legend(section, ended, heat);
  $("hint").hidden = !rows.length;
  if (rows.length) {
    const whole = shared(section, ended, choice);
    const panels = choice.facet ? section.axes[choice.facet].values.map((value, i) => [value.label, ended.filter((setting) => setting.at[choice.facet] === i)]).filter(([, group]) => group.length) : [["", ended]];
    $("plots").className = panels.length > 1 ? "many" : "";
    const elements = panels.map(([label]) => {
      const element = make("div", { className: "plot" });
      element.setAttribute("role", "group");
      element.setAttribute("aria-roledescription", "plot");
      element.setAttribute("aria-label", `${about}${label ? `, ${label}` : ""}. Arrow keys go from point to point, Enter shows the command; all values are in the table below.`);
      $("plots").append(make("div", { className: "panel" }, ...(label ? [make("h3", { textContent: label })] : []), element));
      return element;
    }); // all are laid out before the first is drawn, which takes the width that it then has
    panels.forEach(([, group], i) => draw(elements[i], section, group, choice, whole, { chosen: show, said }));
  }
  lost(section);
  $("table").replaceChildren();
  if ($("data").open) table(rows, about, heat);
}

function notes(settings, ended, rows) {
  if (!settings.length) return "No setting is chosen to be shown.";
  if (!ended.length) return "None of these settings has a finished run yet.";
  if (!rows.length) return "These runs have no such figures.";
  const seeds = [...new Set(rows.map((row) => row.n))].sort((one, other) => one - other);
  const n = seeds.length === 1 ? `n=${seeds[0]}` : `n=${seeds[0]} to ${seeds.at(-1)}`;
  const shape = { curves: "bands", final: "bars", heat: "± " }[choice.view];
  const spread = seeds.at(-1) === 1 ? "one seed, no deviation." : `means over seeds; ${shape === "± " ? "±" : shape + " of"} one standard deviation${seeds[0] === 1 ? ", none for one seed" : ""}.`;
  const absent = settings.length - new Set(rows.flatMap((row) => (row.several ?? [row]).map((each) => each.setting))).size;
  const shared = rows.some((row) => row.several?.length > 1) ? " Where settings share a cell, it shows their mean; choose panels or fewer settings to see each." : "";
  return `${n}: ${spread}${absent ? ` ${absent} of ${settings.length} settings have nothing to draw here.` : ""}${shared}`;
}

function legend(section, settings, heat) {
  const axis = section.axes[choice.color];
  const present = axis && !heat ? axis.values.filter((_, i) => settings.some((setting) => setting.at[choice.color] === i)) : [];
  const sample = (color, dash, label) => {
    const swatch = make("i");
    swatch.style.borderTop = `3px ${{ solid: "solid", dash: "dashed", dot: "dotted" }[dash]} ${color}`;
    return make("li", {}, swatch, label);
  };
  const dashed = heat ? null : dashes(section, settings, choice);
  const dashing = dashed ? dashed.present.map((i) => sample(paint("--ink"), dashed.of(i), section.axes[dashed.axis].values[i].label)) : [];
  $("legend").replaceChildren(...present.map((value) => sample(legible(value.color), "solid", value.label)), ...dashing);
}

const tabulated = (section, settings, heat) => heat ? grouped(section, settings, choice.facet ? [choice.facet] : []).flatMap((group) => cells(section, group, choice)) : series(section, settings, choice).flatMap((each) => each.points);

function table(rows, about, heat) {
  const section = current(), name = heat ? choice.value : choice.y;
  const title = (key) => section.axes[key]?.title ?? content.measures[key].title;
  const text = (key, row) => section.axes[key] ? section.axes[key].values[row.setting.at[key]].text : number(row.x, key);
  const columns = heat ? [choice.x, choice.y] : [choice.x];
  const head = ["setting", ...columns.map(title), `${title(name)}, mean`, "deviation", "n"];
  const body = rows.flatMap((row) => (row.several ?? [row]).map((each) => {
    const select = make("button", { type: "button", textContent: each.setting.label });
    select.addEventListener("click", () => show({ ...each, several: undefined }));
    const first = make("th", { scope: "row" }, select);
    const cells = [...columns.map((key) => text(key, { ...row, setting: each.setting })), number(each.mean, name), number(each.deviation, name), each.n];
    return make("tr", {}, first, ...cells.map((cell) => make("td", { textContent: cell })));
  }));
  const header = make("tr", {}, ...head.map((cell) => make("th", { scope: "col", textContent: cell })));
  $("table").replaceChildren(make("table", {}, make("caption", { textContent: `${about}; a setting's name shows its commands` }), make("thead", {}, header), make("tbody", {}, ...body)));
}

// The runs behind a point: their folders and commands.
function show(point) {
  const settings = (point.several ?? [point]).map((each) => each.setting);
  const title = make("h2", { id: "runs-title", tabIndex: -1, textContent: settings.length === 1 ? settings[0].label : `${settings.length} settings` });
  const entries = settings.flatMap((setting) => setting.runs.map((run) => entry(run, settings.length > 1 ? `${setting.label}, ` : "")));
  $("runs").replaceChildren(title, ...entries);
  $("runs").hidden = false;
  title.focus({ preventScroll: true });
  $("runs").scrollIntoView({ block: "nearest" });
  said(`${title.textContent}: ${entries.length} ${entries.length === 1 ? "run" : "runs"}`);
}

function entry(run, before) {
  const link = make("a", { href: run.folder.split("/").map(encodeURIComponent).join("/") + "/", textContent: run.name });
  const state = run.status === "finished" ? "" : `, ${run.status}${run.why ? ` (${run.why})` : ""}`;
  const line = make("p", {}, `${before}seed ${run.seed}: `, link, state);
  if (!run.command) return make("div", { className: "run" }, line, make("p", { textContent: "Its command is not known: its config.yaml is missing, damaged or of another version." }));
  const code = make("code", { textContent: run.command });
  const copy = make("button", { type: "button", textContent: "Copy" });
  copy.setAttribute("aria-label", `Copy the command of seed ${run.seed}`);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(run.command);
    } catch { // where a page from the file system may not: select it, so that the usual keys copy
      getSelection().selectAllChildren(code);
      if (!document.execCommand("copy")) return said("The command is selected; copy it with the usual keys");
    }
    copy.textContent = "Copied";
    said("Command copied");
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  return make("div", { className: "run" }, line, make("div", { className: "command" }, code, copy));
}

function lost(section) {
  const runs = section.settings.flatMap((setting) => setting.runs.filter((run) => run.status !== "finished").map((run) => [setting, run]));
  $("missing").hidden = !runs.length;
  $("missing").querySelector("summary").textContent = `Runs that are in no mean (${runs.length})`;
  $("missing").querySelector("ul").replaceChildren(...runs.map(([setting, run]) => make("li", {}, entry(run, `${setting.label}, `))));
}

function start() {
  if (!content.sections.length) {
    $("controls").hidden = $("data").hidden = $("missing").hidden = $("hint").hidden = true;
    document.querySelector(".section").hidden = $("skip").hidden = true;
    $("caption").textContent = "There are no runs to report yet";
    return;
  }
  recall();
  $("section").addEventListener("change", (event) => {
    hidden = {};
    choice = possible(content.sections.find((section) => section.name === event.target.value), {});
    update();
  });
  for (const key of KEYS)
    $(key).addEventListener("change", (event) => {
      choice = possible(current(), key === "view" ? { view: event.target.value } : { ...choice, [key]: event.target.value });
      update();
    });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("skip").addEventListener("click", (event) => (event.preventDefault(), document.querySelector(".plot")?.focus()));
  $("data").addEventListener("toggle", () => plot(current()));
  dark.addEventListener("change", () => plot(current()));
  addEventListener("hashchange", () => (recall(), update()));
  update(false);
}

start();
