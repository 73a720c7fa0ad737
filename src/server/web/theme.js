// Light or dark before the first paint. A classic script in the head: modules run too late for it.
(function () {
  "use strict";
  const key = "hadal.theme";
  const order = ["auto", "light", "dark"];

  function stored() {
    try {
      const value = localStorage.getItem(key);
      return order.includes(value) ? value : "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  }

  function apply(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
  }

  apply(stored());

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const show = (theme) => {
      button.dataset.theme = theme;
      button.setAttribute("aria-label", "Colours: " + theme + ". Change");
      button.title = "Colours: " + theme;
    };
    show(stored());
    button.addEventListener("click", () => {
      const next = order[(order.indexOf(button.dataset.theme) + 1) % order.length];
      try {
        localStorage.setItem(key, next);
      } catch {
        // it holds until the page is left
      }
      apply(next);
      show(next);
    });
  });
})();
