// emulate cannot be told an address to listen on, and would take every one that this machine has.
import { Server } from "node:net";

const { listen } = Server.prototype;

Server.prototype.listen = function (port) {
  return listen.call(this, { port, host: "127.0.0.1" });
};
