"use strict";
// From what the page holds to what is drawn: means over seeds, curves, final figures and maps. Nothing here touches the page.

const content = JSON.parse(document.getElementById("content").textContent);

function statistic(values) {
  const n = values.length, mean = values.reduce((sum, value) => sum + value, 0) / n;
  const deviation = n > 1 ? Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : null;
  return { n, mean, deviation };
}

const finished = (setting) => setting.runs.filter((run) => run.status === "finished");

// A figure of the final models over the seeds that finished; nothing where one of them has no such figure.
function final(setting, name) {
  const runs = finished(setting), values = runs.map((run) => run.columns[name]?.at(-1) ?? null);
  if (!values.length || values.includes(null)) return null;
  return { ...statistic(values), seeds: runs.map((run, i) => [run.seed, values[i]]) };
}

function interpolated(at, xs, ys) {
  if (at <= xs[0]) return ys[0];
  if (at >= xs.at(-1)) return ys.at(-1);
  const right = xs.findIndex((x) => x >= at), left = right - 1;
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

function number(value, name) {
  if (value === null || value === undefined) return "";
  const digits = content.measures[name]?.digits ?? 4;
  const small = value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits;
  return small ? value.toPrecision(3) : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function withDeviation(point, name) {
  return number(point.mean, name) + (point.deviation === null ? "" : ` ± ${number(point.deviation, name)}`);
}
