"""Stores in object stores: publication, mirrors, care."""
