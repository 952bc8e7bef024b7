// emulate signs a status callback's URL with its fragment, Twilio without it: "#rc=2&rp=all" speaks to Twilio alone
// (https://www.twilio.com/docs/usage/webhooks/webhooks-connection-overrides).
import crypto from "node:crypto";
import { syncBuiltinESMExports } from "node:module";

const HEADER = "X-Twilio-Signature";
const signed = new Map(); // what was signed, and with what, by signature; until it is sent

const { createHmac } = crypto;
const { fetch } = globalThis;

crypto.createHmac = (algorithm, key, options) => {
  const hmac = createHmac(algorithm, key, options);
  const { update, digest } = hmac;
  let text = "";
  hmac.update = (data, encoding) => {
    text += data;
    return update.call(hmac, data, encoding);
  };
  hmac.digest = (encoding) => {
    const signature = digest.call(hmac, encoding);
    if (text.includes("#")) signed.set(signature, { algorithm, key, text });
    return signature;
  };
  return hmac;
};
syncBuiltinESMExports();

globalThis.fetch = (url, options = {}) => {
  const signature = options.headers?.[HEADER];
  const found = signed.get(signature);
  signed.delete(signature);
  if (found?.text.startsWith(url) && url.includes("#")) {
    const text = url.slice(0, url.indexOf("#")) + found.text.slice(url.length);
    options.headers[HEADER] = createHmac(found.algorithm, found.key).update(text).digest("base64");
  }
  return fetch(url, options);
};
