"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const made = (name, text, parent) => {
    const element = document.createElement(name);
    element.textContent = text;
    parent?.append(element);
    return element;
  };

  // What the pointer or the arrow keys read: one box for the whole page.
  const tip = made("div", "", document.body);
  tip.id = "tip";
  tip.setAttribute("role", "status");
  const show = (x, y) => {
    tip.style.display = "block";
    const left = x + 16 + tip.offsetWidth > innerWidth ? x - tip.offsetWidth - 12 : x + 16;
    tip.style.left = `${Math.max(left, 6)}px`;
    tip.style.top = `${Math.min(Math.max(y - 34, 4), Math.max(innerHeight - tip.offsetHeight - 4, 4))}px`;
  };
  let read = null; // the chart whose values are shown
  const hide = () => {
    tip.style.display = "none";
    if (read) for (const mark of all(".cross, .dot", read)) mark.remove();
    if (read) for (const mark of all(".chosen", read)) mark.classList.remove("chosen");
    read = null;
  };

  // Three digits; `places` keeps zeros at their end, so that numbers below each other line up.
  const number = (value, places = false) => {
    const size = Math.abs(value);
    let text = value.toPrecision(3);
    if (size >= 1000) text = Math.round(value).toLocaleString("en-US");
    else if (size && size < 1e-3) text = value.toExponential(2);
    else if (!places) text = `${Number(text)}`;
    return text.replaceAll("-", "\u2212");
  };
  // The scales of a chart, written by svg.py; values are read back from the drawn points.
  const scales = (chart) => {
    const f = chart.dataset.frame.split(" ").map(Number);
    const value = (share, low, high, log) => (log ? low * (high / low) ** share : low + share * (high - low));
    return {
      x: (px) => value((px - f[6]) / (f[8] - f[6]), f[0], f[1], f[2]),
      y: (py) => value((f[9] - py) / (f[9] - f[7]), f[3], f[4], f[5]),
      edges: f.slice(6),
    };
  };
  const curves = (chart) => all("g.s:not(.off)", chart).map((group) => ({
    group,
    points: all("polyline", group).flatMap((line) => line.getAttribute("points").split(" "))
      .map((pair) => pair.split(",").map(Number)),
  })).filter((curve) => curve.points.length);
  const nearest = (points, px) =>
    points.reduce((best, point) => (Math.abs(point[0] - px) < Math.abs(best[0] - px) ? point : best));

  const draw = (chart, name, attributes, parent = chart) => {
    const element = document.createElementNS("http:" + "//www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    parent.append(element);
  };
  /** Reads every curve of a chart at the drawn place nearest to px. */
  const readCurves = (chart, px, screenY) => {
    const found = curves(chart);
    if (!found.length) return;
    hide();
    read = chart;
    const at = nearest(found.flatMap((curve) => curve.points), px)[0];
    const scale = scales(chart);
    chart.dataset.at = at;
    draw(chart, "line", { class: "cross", x1: at, x2: at, y1: scale.edges[1], y2: scale.edges[3] });
    const rows = found.map(({ group, points }) => [group, nearest(points, at)])
      .filter(([, point]) => Math.abs(point[0] - at) < 12).sort((a, b) => a[1][1] - b[1][1]);
    tip.replaceChildren();
    made("span", `${chart.dataset.x}: ${number(scale.x(at))}`, tip);
    for (const [group, [x, y]] of rows.slice(0, 14)) {
      draw(chart, "circle", { class: "dot", cx: x, cy: y, r: 3.2 }, group);
      const row = made("div", "", tip);
      row.className = group.getAttribute("class");
      made("i", "", row);
      made("span", group.dataset.series, row);
      made("b", number(scale.y(y), true), row);
    }
    const box = chart.getBoundingClientRect();
    show(box.left + (at / chart.viewBox.baseVal.width) * box.width, screenY);
  };
  /** Shows what a marker says. */
  const readMark = (mark) => {
    hide();
    read = mark.ownerSVGElement;
    mark.classList.add("chosen");
    tip.textContent = mark.dataset.tip;
    const box = mark.getBoundingClientRect();
    show(box.right, box.top);
  };
  const isScatter = (chart) => chart.matches(".scatter");
  const marks = (chart) => all("g.s:not(.off) [data-tip]", chart)
    .sort((a, b) => a.getBoundingClientRect().x - b.getBoundingClientRect().x);

  document.addEventListener("pointermove", (event) => {
    const target = event.target instanceof Element ? event.target : null;
    const mark = target?.closest("[data-tip]");
    const chart = target?.closest("svg.chart");
    if (mark) return readMark(mark);
    if (!chart || isScatter(chart)) return hide();
    const box = chart.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
    readCurves(chart, px, event.clientY);
  });
  document.addEventListener("scroll", hide, { passive: true });
  for (const chart of all("svg.chart")) {
    chart.setAttribute("tabindex", "0");
    chart.addEventListener("blur", hide);
    chart.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (event.key === "Escape") hide();
      if (!step) return;
      event.preventDefault();
      const places = isScatter(chart) ? marks(chart)
        : [...new Set(curves(chart).flatMap((curve) => curve.points.map((p) => p[0])))].sort((a, b) => a - b);
      const before = isScatter(chart) ? places.indexOf(all(".chosen", chart)[0])
        : places.indexOf(Number(chart.dataset.at ?? NaN));
      const next = places[Math.min(Math.max(before + step, 0), places.length - 1)];
      if (next === undefined) return;
      if (isScatter(chart)) readMark(next);
      else readCurves(chart, next, chart.getBoundingClientRect().top + 40);
    });
  }

  for (const button of all(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const curve of all("figure g.s", button.closest(".switch, section"))) {
        if (curve.dataset.series === button.dataset.series) curve.classList.toggle("off", !shown);
      }
    });
  }

  for (const film of all(".film:has(.slider)")) {
    const slider = film.querySelector("input");
    const moments = slider.dataset.moments.split("|");
    const move = () => {
      film.querySelector("output").textContent = moments[slider.value];
      slider.setAttribute("aria-valuetext", moments[slider.value]);
      for (const row of all("tbody tr", film)) {
        [...row.cells].slice(1).forEach((cell, k) => cell.classList.toggle("now", k === Number(slider.value)));
      }
    };
    const together = film.querySelector("button");
    together.addEventListener("click", () => {
      const sliding = film.classList.toggle("sliding");
      together.setAttribute("aria-pressed", String(!sliding));
    });
    slider.addEventListener("input", move);
    film.querySelector(".slider").hidden = false;
    film.classList.add("sliding");
    move();
  }

  for (const button of all("button.copy")) {
    button.addEventListener("click", async () => {
      const code = button.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(code);
      }
    });
  }

  // Long rankings can be searched; folded rows are shown while they are.
  for (const field of all(".filter input")) {
    const section = field.closest("section");
    field.closest(".filter").hidden = false;
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of all("table.ranking tbody tr", section)) {
        const text = row.querySelector("th").textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      for (const fold of all("details", section)) fold.open = words.length > 0;
    });
  }

  // Dark or light: what the system asks for, until the button says otherwise.
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const kept = (value) => {
    try {
      if (value) localStorage.setItem("ddpm-theme", value);
      return localStorage.getItem("ddpm-theme");
    } catch {
      return null; // a page opened from a file may have no storage
    }
  };
  if (kept()) root.dataset.theme = kept();
  const theme = made("button", isDark() ? "light" : "dark", document.querySelector(".kicker"));
  theme.type = "button";
  theme.className = "theme";
  theme.title = "light or dark colours";
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept(root.dataset.theme);
    theme.textContent = isDark() ? "light" : "dark";
  });

  addEventListener("beforeprint", () => {
    for (const fold of all("details:not(.data)")) fold.open = true; // long tables are in the files
  });
})();
