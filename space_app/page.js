// Tips of the pictures: on hover, tap and focus; arrow keys go from mark to mark. Text is set as text, never as HTML.
(() => {
  const tip = document.createElement("div");
  tip.className = "ev-tip";
  tip.setAttribute("role", "tooltip");
  const show = (target) => {
    const host = document.querySelector(".gradio-container") || document.body;
    if (tip.parentNode !== host) host.appendChild(tip);
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    const mark = (target.querySelector(".ev-markshape") || target).getBoundingClientRect();
    const x = mark.left + mark.width / 2 - tip.offsetWidth / 2;
    tip.style.left = `${Math.max(8, Math.min(x, window.innerWidth - tip.offsetWidth - 8))}px`;
    const above = mark.top - tip.offsetHeight - 8;
    tip.style.top = `${above > 8 ? above : mark.bottom + 8}px`;
  };
  const hide = () => { tip.hidden = true; };
  // a finger does not hover: its tap is a click
  for (const name of ["focusin", "click", ...(window.matchMedia("(hover: hover)").matches ? ["mouseover"] : [])]) {
    document.addEventListener(name, (event) => { const target = event.target.closest?.("[data-tip]"); if (target) show(target); else hide(); });
  }
  // what scrolls can be reached by the keyboard
  new MutationObserver(() => {
    for (const frame of document.querySelectorAll('.cm-scroller[tabindex="-1"]')) frame.tabIndex = 0;
    for (const around of document.querySelectorAll("button:has(button):not([role])")) { // a gallery's upload: only the inner one acts
      around.setAttribute("role", "group");
      around.tabIndex = -1;
    }
  }).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("scroll", hide, true);
  document.addEventListener("click", (event) => {
    const link = event.target.closest && event.target.closest(".ev-copy");
    if (!link || !navigator.clipboard || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    navigator.clipboard.writeText(link.href).then(() => { link.textContent = "Copied"; }, () => window.open(link.href));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") { hide(); return; }
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const frame = event.target.closest?.(".ev-svg");
    const marks = frame ? [...frame.querySelectorAll("[data-tip][tabindex]")] : [];
    if (!step || !marks.length) return;
    const at = marks.indexOf(document.activeElement.closest("[data-tip]"));
    const next = at < 0 ? (step > 0 ? 0 : marks.length - 1) : Math.max(0, Math.min(marks.length - 1, at + step));
    marks[next].focus();
    event.preventDefault();
  });
})();
