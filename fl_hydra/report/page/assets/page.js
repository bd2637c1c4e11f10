"use strict";
// The page: choices, what they change, and where they are kept (behind the # of the address).

const $ = (id) => document.getElementById(id);
const KEYS = ["view", "x", "y", "value", "color", "facet"];
const VIEWS = {
  curves: "Curves",
  final: "Final values",
  heat: "Heat map",
  targets: "Cost to a target",
  sampling: "Client sampling",
  classes: "What clients hold",
};
const OF_CLIENTS = ["sampling", "classes"];
let choice = {};
let drawing = []; // what is being drawn
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
  const axes = named(section, Object.keys(section.axes)),
    several = axes.filter(([name]) => section.axes[name].values.length > 1);
  const figures = named(section, available(section));
  const usable = several.length ? several : axes;
  const accuracies = figures.filter(([name]) => name.endsWith("/acc")),
    costs = figures.filter(([name]) => !/\/|^lr$|^J$|^noise_scale$/.test(name));
  const has = {
    heat: several.length > 1,
    sampling: section.distributions.length > 0,
    classes: section.views.classes ? section.divisions.length > 0 : section.divisions.length > 1,
    targets: accuracies.length > 0 && costs.length > 0 && section.settings.filter((setting) => finished(setting).length).length > 1,
  };
  return {
    view: Object.entries(VIEWS).filter(([name]) => has[name] ?? true),
    x: { final: [...usable, ...figures], heat: usable, targets: costs }[view] ?? figures,
    y: { heat: usable, targets: accuracies }[view] ?? figures,
    value: figures,
    color: [["", "one for all"], ...axes],
    facet: OF_CLIENTS.includes(view) && several.length ? several : [["", "one for all"], ...several],
  };
}

// The choice with everything that is not possible replaced by what the section's own figures show, or by the first that is.
function possible(section, wanted) {
  const views = Object.keys(VIEWS),
    view = views.includes(wanted.view) ? wanted.view : "curves";
  const allowed = options(section, view),
    made = { section: section.name, view };
  if (!allowed.view.some(([name]) => name === view)) return possible(section, { ...wanted, view: "curves" });
  const axes = allowed.facet.slice(1).map(([name]) => name);
  const numeric = axes.filter((name) => section.axes[name].values.some((value) => value.number !== null));
  const lead = { curves: "epoch", final: numeric[0] ?? axes[0], heat: numeric[1] ?? axes[1], targets: "bytes" }[view];
  const usual = { x: lead, y: view === "heat" ? axes.find((name) => name !== lead) : section.accuracy, value: section.accuracy, facet: "" };
  usual.color = view === "targets" ? "method" : (axes.find((name) => view === "curves" || name !== lead) ?? "method");
  const own = { ...usual, ...section.views[view] };
  for (const key of KEYS.slice(1)) {
    const fits = (name) => name !== undefined && allowed[key].some(([value]) => value === name);
    made[key] = [wanted[key], own[key], usual[key]].find(fits) ?? allowed[key][0]?.[0] ?? "";
  }
  if (view === "targets") {
    const fits = (target) => target !== undefined && target !== null && target !== "" && target >= 0 && target <= 100;
    made.target = String([wanted.target, own.y === made.y ? own.target : null, reachable(section.settings, made.y)].find(fits) ?? 50);
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
  for (const name of Object.keys(section.axes))
    if (kept[`hide.${name}`]) hidden[name] = new Set(kept[`hide.${name}`].split(",").map(Number));
  choice = possible(section, kept);
}

function update(spoken = true) {
  const section = current();
  document.title = `${section.title}: report`;
  document.querySelector("h1").textContent = section.title;
  $("questions").replaceChildren(...section.questions.map((text) => make("li", { textContent: text })));
  fill(
    $("section"),
    content.sections.map((each) => [each.name, each.title]),
    section.name,
  );
  const allowed = options(section, choice.view);
  for (const key of KEYS) fill($(key), allowed[key], choice[key]);
  const clients = OF_CLIENTS.includes(choice.view);
  $("x-label").hidden = $("y-label").hidden = clients;
  $("x-label").firstElementChild.textContent = choice.view === "targets" ? "What it takes" : "x";
  $("y-label").firstElementChild.textContent = choice.view === "targets" ? "Accuracy" : "y";
  $("value-label").hidden = choice.view !== "heat";
  $("color-label").hidden = choice.view === "heat" || clients;
  $("target-label").hidden = choice.view !== "targets";
  $("target").value = choice.target ?? "";
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
  const heat = choice.view === "heat",
    clients = OF_CLIENTS.includes(choice.view);
  const told = {
    sampling: (setting) => setting.distributions.some((each) => each !== null),
    classes: (setting) => setting.division !== null,
  }[choice.view];
  const settings = visible(section),
    ended = settings.filter(told ?? ((setting) => finished(setting).length));
  const title = (name) => (section.axes[name] ?? content.measures[name]).title.replace(/, [^,]*$/, ""); // units are beside the axes
  const about = {
    curves: () => `${title(choice.y)} against ${title(choice.x)}`,
    final: () => `${title(choice.y)} of the final models against ${title(choice.x)}`,
    heat: () => `${title(choice.value)} of the final models, by ${title(choice.y)} and ${title(choice.x)}`,
    targets: () => `${title(choice.x)} until ${title(choice.y)} is ${choice.target} %`,
    sampling: () => "how probable each client is in a round",
    classes: () => "what clients hold",
  }[choice.view]();
  $("caption").textContent = about[0].toUpperCase() + about.slice(1);
  const old = [...$("plots").querySelectorAll(".plot")];
  Promise.allSettled(drawing).then(() => old.forEach((element) => Plotly.purge(element))); // not while Plotly still lays them out
  $("plots").replaceChildren();
  $("runs").hidden = true;
  const rows = tabulated(section, ended);
  $("notes").textContent = notes(settings, ended, rows);
  legend(section, ended, heat || clients);
  $("hint").hidden = !rows.length;
  if (rows.length) {
    const whole = shared(section, ended, choice);
    const panels = panelled(section, ended, choice.facet);
    $("plots").className = panels.length > 1 ? "many" : "";
    const elements = panels.map(([label]) => {
      const element = make("div", { className: "plot" });
      element.setAttribute("role", "group");
      element.setAttribute("aria-roledescription", "plot");
      element.setAttribute(
        "aria-label",
        `${about}${label ? `, ${label}` : ""}. Arrow keys go from point to point, Enter shows the command; all values are in the table below.`,
      );
      $("plots").append(make("div", { className: "panel" }, ...(label ? [make("h3", { textContent: label })] : []), element));
      return element;
    }); // all are laid out before the first is drawn, which takes the width that it then has
    drawing = panels.map((panel, i) => draw(elements[i], section, panel, choice, whole, { chosen: show, said }));
  }
  lost(section);
  $("table").replaceChildren();
  if ($("data").open) table(rows, about);
}

const ABOUT_CLIENTS = {
  sampling:
    "Probability of each client, the most probable first, as the mean over seeds. Dotted: all alike. effective: 1 / Σp², the number of equally probable clients that would be as concentrated.",
  classes: "Of the first seed. Every column is a client.",
};

function notes(settings, ended, rows) {
  if (!settings.length) return "No setting is chosen to be shown.";
  if (OF_CLIENTS.includes(choice.view)) return ended.length ? ABOUT_CLIENTS[choice.view] : "None of these runs tells what its clients are.";
  if (!ended.length) return "None of these settings has a finished run yet.";
  if (!rows.length) return "These runs have no such figures.";
  const seeds = [...new Set(rows.map((row) => row.n))].sort((one, other) => one - other);
  const n = seeds.length === 1 ? `n=${seeds[0]}` : `n=${seeds[0]} to ${seeds.at(-1)}`;
  const shape = { curves: "bands", final: "bars", heat: "± ", targets: "bars" }[choice.view];
  const spread =
    seeds.at(-1) === 1
      ? "one seed, no deviation."
      : `means over seeds; ${shape === "± " ? "±" : shape + " of"} one standard deviation${seeds[0] === 1 ? ", none for one seed" : ""}.`;
  const absent = settings.length - new Set(rows.flatMap((row) => (row.several ?? [row]).map((each) => each.setting))).size;
  const shared = rows.some((row) => row.several?.length > 1)
    ? " Where settings share a cell, it shows their mean; choose panels or fewer settings to see each."
    : "";
  return `${n}: ${spread}${absent ? ` ${absent} of ${settings.length} settings have nothing to draw here.` : ""}${shared}`;
}

function legend(section, settings, heat) {
  const axis = section.axes[choice.color];
  const present = axis && !heat ? axis.values.filter((_, i) => settings.some((setting) => setting.at[choice.color] === i)) : [];
  const sample = (color, dash, label, sign = "") => {
    const swatch = make("i", { textContent: sign, ariaHidden: "true" });
    swatch.style.color = color;
    swatch.style.borderTop = `3px ${{ solid: "solid", dash: "dashed", dot: "dotted" }[dash]} ${color}`;
    return make("li", {}, swatch, label);
  };
  const marked = ["curves", "final"].includes(choice.view);
  const sign = (value) => (marked ? SIGNS[axis.values.indexOf(value) % SIGNS.length] : "");
  const dashed = heat || choice.view === "targets" ? null : dashes(section, settings, choice);
  const dashing = dashed ? dashed.present.map((i) => sample(paint("--ink"), dashed.of(i), section.axes[dashed.axis].values[i].label)) : [];
  $("legend").replaceChildren(...present.map((value) => sample(legible(value.color), "solid", value.label, sign(value))), ...dashing);
}

function tabulated(section, settings) {
  const panels = () => panelled(section, settings, choice.facet);
  switch (choice.view) {
    case "sampling":
      return panels().flatMap(([label, group]) => sampling(section, group, label)?.points ?? []);
    case "classes":
      return panels().flatMap(([label, group]) => {
        const held = holdings(section, group);
        return held ? held.values.map((values, client) => ({ setting: group[0], group, label, held, values, client })) : [];
      });
    case "heat":
      return grouped(section, settings, choice.facet ? [choice.facet] : []).flatMap((group) => cells(section, group, choice));
    default:
      return series(section, settings, choice).flatMap((each) => each.points);
  }
}

// The columns of the table, and what a row has in them.
function columned(section) {
  const title = (key) => section.axes[key]?.title ?? content.measures[key].title;
  const text = (key, row, setting) => (section.axes[key] ? section.axes[key].values[setting.at[key]].text : number(row.x, key));
  const figures = (name) => (_, each) => [number(each.mean, name), number(each.deviation, name), each.n];
  const of = (columns, name) => [
    [...columns.map(title), `${title(name)}, mean`, "deviation", "n"],
    (row, each) => [...columns.map((key) => text(key, row, each.setting)), ...figures(name)(row, each)],
  ];
  switch (choice.view) {
    case "heat":
      return of([choice.x, choice.y], choice.value);
    case "targets":
      return [of([], choice.x)[0], (row, each) => (each.mean === null ? ["never", "", each.n] : figures(choice.x)(row, each))];
    case "sampling":
      return [["client, by probability", "probability, mean", "deviation", "n"], (row, each) => [row.x, ...figures("")(row, each)]];
    case "classes":
      return [["client", "samples", "holds"], (row) => [row.client + 1, row.held.sizes[row.client].toLocaleString("en"), contents(row)]];
    default:
      return of([choice.x], choice.y);
  }
}

// What a client holds, in words: the most of it first.
function contents({ held, values, client }) {
  const named = values.map((value, i) => [value, held.names[i]]).sort(([one], [other]) => other - one);
  if (held.kind === "characters") return named.map(([value, name]) => `${name} ×${(2 ** value).toFixed(2)}`).join(", ");
  return named
    .filter(([value]) => value)
    .map(([value, name]) => `${name}: ${value.toLocaleString("en")}`)
    .join(", ");
}

function table(rows, about) {
  const [columns, cells] = columned(current());
  const head = [OF_CLIENTS.includes(choice.view) ? "settings" : "setting", ...columns];
  const body = rows.flatMap((row) =>
    (row.several ?? [row]).map((each) => {
      const select = make("button", { type: "button", textContent: row.label || each.setting.label });
      select.addEventListener("click", () => show({ ...each, several: undefined }));
      const first = make("th", { scope: "row" }, select);
      return make("tr", {}, first, ...cells(row, each).map((cell) => make("td", { textContent: cell })));
    }),
  );
  const header = make("tr", {}, ...head.map((cell) => make("th", { scope: "col", textContent: cell })));
  $("table").replaceChildren(
    make(
      "table",
      { className: choice.view === "classes" ? "wide" : "" },
      make("caption", { textContent: `${about}; a setting's name shows its commands` }),
      make("thead", {}, header),
      make("tbody", {}, ...body),
    ),
  );
}

// The runs behind a point: their folders and commands.
function show(point) {
  const settings = point.group ?? (point.several ?? [point]).map((each) => each.setting);
  const title = make("h2", {
    id: "runs-title",
    tabIndex: -1,
    textContent: settings.length === 1 ? settings[0].label : `${settings.length} settings`,
  });
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
  if (!run.command)
    return make(
      "div",
      { className: "run" },
      line,
      make("p", { textContent: "Its command is not known: its config.yaml is missing, damaged or of another version." }),
    );
  const code = make("code", { textContent: run.command });
  const copy = make("button", { type: "button", textContent: "Copy" });
  copy.setAttribute("aria-label", `Copy the command of seed ${run.seed}`);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(run.command);
    } catch {
      // where a page from the file system may not: select it, so that the usual keys copy
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
  $("missing")
    .querySelector("ul")
    .replaceChildren(...runs.map(([setting, run]) => make("li", {}, entry(run, `${setting.label}, `))));
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
    choice = possible(
      content.sections.find((section) => section.name === event.target.value),
      {},
    );
    update();
  });
  for (const key of KEYS)
    $(key).addEventListener("change", (event) => {
      const kept = key === "y" ? { ...choice, target: undefined } : choice; // another accuracy has another target
      choice = possible(current(), key === "view" ? { view: event.target.value } : { ...kept, [key]: event.target.value });
      update();
    });
  $("target").addEventListener("change", (event) => {
    choice = possible(current(), { ...choice, target: event.target.value });
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
