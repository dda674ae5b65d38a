"use strict";
(() => {
  const tip = document.createElement("div");
  tip.id = "tip";
  document.body.append(tip);
  document.addEventListener("pointermove", (event) => {
    const text = event.target.closest ? event.target.closest("[data-tip]")?.dataset.tip : null;
    tip.style.display = text ? "block" : "none";
    if (!text) return;
    tip.textContent = text;
    const left = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 6);
    tip.style.left = `${Math.max(left, 6)}px`;
    tip.style.top = `${Math.max(event.clientY - 34, 4)}px`;
  });
  for (const button of document.querySelectorAll(".legend button")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(shown));
      for (const curve of button.closest("section").querySelectorAll("g.s")) {
        if (curve.dataset.series === button.dataset.series) curve.classList.toggle("off", !shown);
      }
    });
  }
  for (const button of document.querySelectorAll("button.copy")) {
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
  window.addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details")) fold.open = true;
  });
})();
