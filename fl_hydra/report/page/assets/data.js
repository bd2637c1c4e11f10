"use strict";
// From what the page holds to what is drawn: means over seeds, curves, final figures and maps. Nothing here touches the page.

const content = JSON.parse(document.getElementById("content").textContent);

for (const section of content.sections) {
  for (const { runs } of section.settings)
    for (const { columns } of runs) for (const name in columns) columns[name] = section.columns[columns[name]];
}

function statistic(values) {
  const n = values.length,
    mean = values.reduce((sum, value) => sum + value, 0) / n;
  const deviation = n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : null;
  return { n, mean, deviation };
}

const finished = (setting) => setting.runs.filter((run) => run.status === "finished");

// A figure of the final models over the seeds that finished; nothing where one of them has no such figure.
function final(setting, name) {
  const runs = finished(setting),
    values = runs.map((run) => run.columns[name]?.at(-1) ?? null);
  if (!values.length || values.includes(null)) return null;
  return { ...statistic(values), seeds: runs.map((run, i) => [run.seed, values[i]]) };
}

function interpolated(at, xs, ys) {
  if (at <= xs[0]) return ys[0];
  if (at >= xs.at(-1)) return ys.at(-1);
  const right = xs.findIndex((x) => x >= at),
    left = right - 1;
  return xs[right] === at ? ys[right] : ys[left] + ((ys[right] - ys[left]) * (at - xs[left])) / (xs[right] - xs[left]);
}

// One figure against another. Seeds whose rounds differ in length are read off where the first one was evaluated, as in the figures.
function curve(setting, x, y) {
  const lines = finished(setting).map((run) => {
    const { samples, [x]: xs, [y]: ys } = run.columns;
    const rows = xs && ys ? samples.map((_, i) => i).filter((i) => xs[i] !== null && ys[i] !== null) : [];
    return { seed: run.seed, at: rows.map((i) => samples[i]), x: rows.map((i) => xs[i]), y: rows.map((i) => ys[i]) };
  });
  if (!lines.length || lines.some((line) => !line.at.length)) return null;
  return lines[0].at.map((at) => {
    const ys = lines.map((line) => interpolated(at, line.at, line.y));
    const found = statistic(lines.map((line) => interpolated(at, line.at, line.x)));
    return { x: found.mean, ...statistic(ys), seeds: lines.map((line, i) => [line.seed, ys[i]]) };
  });
}

// Settings in groups that agree on these axes.
function grouped(section, settings, axes) {
  const groups = new Map();
  for (const setting of settings) {
    const key = axes.map((axis) => setting.at[axis]).join();
    groups.set(key, [...(groups.get(key) ?? []), setting]);
  }
  return [...groups.values()];
}

// What is drawn of the chosen settings: rows of {setting, x, mean, deviation, n, seeds}, in series.
function series(section, settings, choice) {
  if (choice.view === "curves")
    return settings.flatMap((setting) => {
      const points = curve(setting, choice.x, choice.y);
      return points ? [{ first: setting, points: points.map((point) => ({ setting, ...point })) }] : [];
    });
  if (choice.view === "targets")
    return settings.flatMap((setting) => {
      const found = reached(setting, choice.x, choice.y, +choice.target);
      return found ? [{ first: setting, points: [{ setting, ...found }] }] : [];
    });
  const others = section.varying.filter((axis) => axis !== choice.x);
  return grouped(section, settings, section.axes[choice.x] ? others : section.varying).flatMap((group) => {
    const points = group.flatMap((setting) => {
      const found = final(setting, choice.y);
      const x = section.axes[choice.x] ? setting.at[choice.x] : final(setting, choice.x)?.mean;
      return found && x !== undefined ? [{ setting, x, ...found }] : [];
    });
    points.sort((one, other) => one.x - other.x);
    return points.length ? [{ first: points[0].setting, points }] : [];
  });
}

// The cells of a map that hold something, each with all its settings: where several share a cell, their mean is shown.
function cells(section, settings, choice) {
  return grouped(section, settings, [choice.x, choice.y]).flatMap((group) => {
    const found = group.map((setting) => ({ setting, ...final(setting, choice.value) })).filter((each) => each.n);
    if (!found.length) return [];
    const mean = statistic(found.map((each) => each.mean)).mean;
    return [{ ...found[0], mean, deviation: found.length > 1 ? null : found[0].deviation, several: found }];
  });
}

// What it took until a figure was first at least the target, over the seeds that finished; no mean where one of them never came to it.
function reached(setting, x, y, target) {
  const runs = finished(setting).filter((run) => run.columns[x] && run.columns[y]);
  if (!runs.length || runs.length < finished(setting).length) return null;
  const values = runs.map((run) => run.columns[x][run.columns[y].findIndex((value) => value !== null && value >= target)] ?? null);
  const found = values.includes(null) ? { n: values.length, mean: null, deviation: null } : statistic(values);
  return { ...found, seeds: runs.map((run, i) => [run.seed, values[i]]) };
}

// A round accuracy that three quarters of the settings reach with all seeds, as in the figures; nothing where there is nothing to reach.
function reachable(settings, y) {
  const peaks = settings.flatMap((setting) => {
    const best = finished(setting).map((run) => (run.columns[y] ?? []).reduce((one, other) => Math.max(one, other ?? 0), 0));
    return best.length ? [Math.min(...best)] : [];
  });
  if (!peaks.length) return null;
  peaks.sort((one, other) => other - one);
  const levels = [0.75, 0.5, 0.25].map((part) => peaks[Math.max(0, Math.ceil(part * peaks.length) - 1)]);
  const level = levels.find((each) => each >= peaks[0] / 2) ?? levels[2];
  const step = level >= 40 ? 5 : level >= 5 ? 1 : 0.1;
  return +(Math.floor(level / step + 1e-9) * step).toFixed(1) || null;
}

// Settings by panel, as [the panel's label, settings, its colour].
function panelled(section, settings, facet) {
  if (!facet) return [["", settings, "#0072B2"]];
  const group = (i) => settings.filter((setting) => setting.at[facet] === i);
  return section.axes[facet].values.map((value, i) => [value.label, group(i), value.color]).filter(([, inside]) => inside.length);
}

// How probable the clients of these settings are, the most probable first: the mean over seeds; with how many would be as concentrated.
function sampling(section, settings, label) {
  const bySeed = new Map(
    settings
      .flatMap((setting) => setting.runs.map((run, i) => [run.seed, section.distributions[setting.distributions[i]]]))
      .filter(([, each]) => each),
  );
  const clients = [...bySeed.values()][0]?.clients;
  const lines = [...bySeed]
    .filter(([, each]) => each.clients === clients)
    .map(([seed, each]) => [seed, each.probabilities ?? Array(clients).fill(1 / clients)]);
  if (!lines.length) return null;
  const effective = statistic(lines.map(([, line]) => 1 / line.reduce((sum, p) => sum + p * p, 0))).mean;
  const points = Array.from({ length: clients }, (_, i) => ({
    setting: settings[0],
    group: settings,
    label,
    x: i + 1,
    ...statistic(lines.map(([, line]) => line[i])),
  }));
  return { effective, clients, points };
}

// What the clients of these settings hold: of the first setting that tells it, in its first seed.
function holdings(section, settings) {
  return section.divisions[settings.find((setting) => setting.division !== null)?.division];
}

const formats = {};

function number(value, name) {
  if (value === null || value === undefined) return "";
  const digits = content.measures[name]?.digits ?? 4;
  const small = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  formats[digits] ??= new Intl.NumberFormat("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }); // which takes long to make
  return small ? value.toPrecision(3) : formats[digits].format(value);
}

function withDeviation(point, name) {
  return (
    (point.mean === null ? "never" : number(point.mean, name)) + (point.deviation === null ? "" : ` ± ${number(point.deviation, name)}`)
  );
}
