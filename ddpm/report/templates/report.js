"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const root = document.documentElement;

  // Charts are drawn in the colours of the style sheet, and anew when the theme changes.
  const specs = JSON.parse(document.querySelector("#charts")?.textContent ?? "[]");
  const theme = () => {
    const style = getComputedStyle(document.body);
    const colour = (name) => {
      const probe = document.body.appendChild(document.createElement("i"));
      probe.style.color = `var(--${name})`;
      const found = getComputedStyle(probe).color;
      probe.remove();
      return found;
    };
    const [ink, soft, rule] = ["ink", "soft", "rule"].map(colour);
    const axis = {
      labelColor: soft, titleColor: soft, tickColor: rule, domainColor: rule, gridColor: rule,
      titleFontWeight: "normal", labelFontSize: 11, titleFontSize: 11.5, gridOpacity: 0.6,
    };
    return {
      background: "transparent", font: style.fontFamily, view: { stroke: rule }, axis,
      legend: { labelColor: ink, labelFontSize: 12.5, symbolSize: 90, titleColor: soft },
      header: { labelColor: ink, labelFontSize: 13, labelFontWeight: "bold" },
      range: { category: [0, 1, 2, 3, 4, 5, 6, 7].map((k) => colour(`s${k}`)) },
      rule: { color: colour("s0") }, point: { color: colour("s0") }, line: { strokeWidth: 1.8 },
    };
  };
  const embed = async (place) => {
    const options = { renderer: "svg", config: theme(), tooltip: { theme: isDark() ? "dark" : "light" } };
    options.actions = { export: true, source: false, compiled: false, editor: false };
    place.dataset.drawn = "drawing";
    await vegaEmbed(place, specs[place.dataset.chart], options);
    place.dataset.drawn = "drawn";
  };
  const drawSeen = (draw) => { for (const place of all(".chart[data-drawn]")) draw(place); };
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !target.dataset.drawn) embed(target);
    }
  }, { rootMargin: "600px" });

  // Dark or light: what the system asks for, until the button says otherwise.
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
  const button = document.querySelector(".kicker").appendChild(document.createElement("button"));
  Object.assign(button, { type: "button", className: "theme", title: "light or dark colours" });
  button.textContent = isDark() ? "light" : "dark";
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept(root.dataset.theme);
    button.textContent = isDark() ? "light" : "dark";
    drawSeen(embed);
  });
  for (const place of all(".chart")) seen.observe(place);

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
      together.setAttribute("aria-pressed", String(!film.classList.toggle("sliding")));
    });
    slider.addEventListener("input", move);
    film.querySelector(".slider").hidden = false;
    film.classList.add("sliding");
    move();
  }

  for (const copy of all("button.copy")) {
    copy.addEventListener("click", async () => {
      const code = copy.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        copy.textContent = "copied";
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

  // A link to a folded section opens it.
  const unfold = () => {
    const fold = location.hash && document.querySelector(`${location.hash} > details.section`);
    if (fold) fold.open = true;
  };
  addEventListener("hashchange", unfold);
  unfold();

  addEventListener("beforeprint", () => {
    for (const fold of all("details:not(.data)")) fold.open = true; // long tables are in the files
    for (const place of all(".chart:not([data-drawn])")) embed(place);
  });
})();
