// Last of all scripts: the list's data are there.
"use strict";
(async function (ls) {
  if (!ls.value("manifest") || !ls.value("features")) {
    document.getElementById("main").textContent = "The data of this page are missing: copy the whole folder, with assets/data.";
    return;
  }
  await ls.route();
  // Milliseconds from the start of loading until the first page is built and laid out.
  document.body.getBoundingClientRect();
  document.documentElement.dataset.ready = Math.round(performance.now());
  ls.server = await ls.findServer();
  if (ls.server) await ls.route();
})(window.lightsae);
