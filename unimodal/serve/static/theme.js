// Runs before the first paint, so that a chosen theme does not flash. Without a choice the system's theme holds.
try {
  const theme = localStorage.getItem("unimodal.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is blocked: the system's theme it is
}
