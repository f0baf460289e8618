"use strict";

// Swagger UI percent-encodes the slashes of a path parameter, as OpenAPI asks for. Here a
// parameter may be a whole path (`/{provider}/{path}`), and the gateway refuses encoded slashes.
function keepSlashes(request) {
  const [path, ...query] = request.url.split("?");
  request.url = [path.replaceAll("%2F", "/"), ...query].join("?");
  return request;
}

window.ui = SwaggerUIBundle({
  // Beside the page's files, whatever prefix a proxy in front has put before them.
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: -1,
  defaultModelRendering: "example",
  filter: false,
  validatorUrl: null,
  requestInterceptor: keepSlashes,
});
