"""The studio's pages, in Streamlit: what one sees of `studio.desk`. Try it: `stylora app`"""
