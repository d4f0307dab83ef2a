// Shows the values of a chart at the step nearest to the pointer. The page reads the same without it.
"use strict";
for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.dataset.chart);
  const plot = figure.querySelector(".plot");
  if (!plot) continue;
  const lines = chart.series.filter((line) => line.style !== "faint" || chart.series.length === 1);
  const steps = [...new Set(lines.flatMap((line) => line.points.map((point) => point[0])))].sort((a, b) => a - b);
  const [low, high] = chart.domain;
  const cursor = document.createElement("div");
  const tip = document.createElement("div");
  cursor.className = "cursor";
  tip.className = "tip";
  cursor.hidden = tip.hidden = true;
  plot.append(cursor, tip);

  const number = (value) =>
    value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toLocaleString("en", { maximumFractionDigits: Math.abs(value) < 1 ? 4 : 3 });

  const away = (point, x) => Math.abs(point[0] - x);

  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const wanted = low + ((event.clientX - box.left) / box.width) * (high - low);
    const step = steps.reduce((best, other) => (Math.abs(other - wanted) < Math.abs(best - wanted) ? other : best));
    const share = (step - low) / (high - low);
    tip.replaceChildren();
    const title = document.createElement("b");
    title.textContent = `${chart.x} ${step.toLocaleString("en")}`;
    tip.append(title);
    for (const line of lines) {
      // Arms measured in hours have no x in common: the nearest point stands for them, where it is near enough.
      const index = line.points.reduce((best, other, i) => (away(other, step) < away(line.points[best], step) ? i : best), 0);
      const point = line.points[index];
      if (away(point, step) > 0.1 * (high - low)) continue;
      const row = document.createElement("div");
      const mark = document.createElement("i");
      mark.className = `c${line.slot}`;
      const error = point[2] ? ` \u00b1 ${number(point[2])}` : "";
      const band = line.band ? ` (${number(line.band[index][0])} to ${number(line.band[index][1])})` : "";
      const place = point[0] === step ? "" : ` at ${point[0].toLocaleString("en")}`;
      row.append(mark, `${line.name} ${number(point[1])}${error}${band}${place}`);
      tip.append(row);
    }
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${share * 100}%`;
    const left = share * box.width;
    tip.style.left = `${Math.max(-46, Math.min(left - tip.offsetWidth / 2, box.width - tip.offsetWidth))}px`;
  };
  const hide = () => {
    cursor.hidden = tip.hidden = true;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", hide);
}
