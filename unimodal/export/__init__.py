"""A model out of this repository: a stock folder (`stock`), its card (`card`), its Hub repository (`hub`)."""
