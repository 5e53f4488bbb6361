// Runs before the page is painted, so that a chosen theme does not flash.
try {
  var theme = localStorage.getItem("assay.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) {
  // Storage is blocked: the system's theme is used.
}
