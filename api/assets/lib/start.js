// Loads the modules of the page once it has been painted: to fetch and read all of them takes longer.

const load = () => document.head.append(document.getElementById("modules").content);

// A page that nobody sees is not painted. What waits behind an animation frame comes after its paint.
if (document.hidden) load();
else requestAnimationFrame(() => setTimeout(load));
