// What the theme leaves out for who reads with a keyboard or a screen reader.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("[role=heading]:not([aria-level])").forEach((caption) => caption.setAttribute("aria-level", "2"));
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  const buttons = document.querySelector(".content-icon-container"); // stands between the landmarks
  buttons?.setAttribute("role", "region");
  buttons?.setAttribute("aria-label", "This page");
  // Arrow keys scroll what can be reached. How wide formulas are is known when they are set.
  const boxes = document.querySelectorAll("article :is(pre, p, .table-wrapper, .cell_output, .math)");
  const reach = () => boxes.forEach((box) => { if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; });
  reach();
  window.addEventListener("load", () => window.MathJax?.startup?.promise.then(reach));
});
