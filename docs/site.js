/* Tables wider than a phone are scrolled by keyboard too. */
const reachable = () => document.querySelectorAll(".md-typeset__scrollwrap").forEach((wrap) => (wrap.tabIndex = 0));
document$.subscribe(() => setTimeout(reachable, 100));
